"""Cured networks as a model of timm's: the ``config.json`` of a pushed run names it, and timm rebuilds the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import timm
from timm.models import load_pretrained, register_model
from torch import nn

from deepvit.errors import UserError


@register_model  # type: ignore[untyped-decorator]
def cured_vit(
    pretrained: bool = False,
    base: str = "",
    base_args: Mapping[str, Any] | None = None,
    cures: Iterable[Mapping[str, Any]] = (),
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    pretrained_model_args: Any = None,
    **given: Any,
) -> nn.Module:
    """A timm model with cures in it, as ``deepvit push`` writes it down; of no use without its ``config.json``.

    Args:
        pretrained: load the weights that lie beside the configuration.
        base: timm name of the network before the cures.
        base_args: its arguments.
        cures: the record of the cures (``model.deepvit_cures``).
        pretrained_cfg, pretrained_cfg_overlay, cache_dir, pretrained_model_args: timm's own.
        **given: more arguments of the base, as ``num_classes``: they go before ``base_args``.

    Raises:
        UserError: no configuration, a base that timm does not have, a cure that this version does not have.
    """
    from deepvit import cures as known  # seconds of import that other models do not need

    if not base or not cures:
        raise UserError(
            "cured_vit is built from the configuration of a pushed run: "
            "timm.create_model('local-dir:FOLDER', pretrained=True), or hf-hub:OWNER/NAME"
        )
    if ":" in base or not timm.is_model(base):
        raise UserError(f"the configuration names a base {base!r}, which timm does not have")
    model: nn.Module = timm.create_model(
        base,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **{**(base_args or {}), **given},
    )
    known.reapply(model, cures)
    if pretrained:
        load_pretrained(
            model,
            pretrained_cfg=model.pretrained_cfg,  # type: ignore[arg-type]
            num_classes=model.num_classes,  # type: ignore[arg-type]
            in_chans=given.get("in_chans", 3),
            cache_dir=cache_dir,
        )
    return model
