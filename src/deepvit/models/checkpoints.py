"""Weights from files: the official DeepViT layout, timm's and DeiT's; every misfit is told in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.models.unpickle import read_checkpoint

Which = Literal["auto", "ema", "raw"]

_log = logging.getLogger(__name__)
_EMA = ("state_dict_ema", "model_ema")
_RAW = ("state_dict", "model")
# Wrappers that put their name before every key: data parallel, torch.compile, a Lightning module.
_PREFIXES = ("module.", "_orig_mod.", "model.")
_SHOWN = 3


def load_state(path: str | os.PathLike[str], which: Which = "auto") -> dict[str, Tensor]:
    """The weights in a checkpoint file, by state name, on the CPU.

    Understood are a plain state dictionary (``.safetensors`` or pickled) and the nested layouts of the
    official DeepViT code and timm (``state_dict``, ``state_dict_ema``) and of DeiT (``model``,
    ``model_ema``). Prefixes of wrappers (``module.``) are removed. Pickles are read safely
    (:func:`read_checkpoint`).

    Args:
        path: ``.pth``, ``.pth.tar``, ``.pt``, ``.bin`` or ``.safetensors``; the content decides, not the
            name.
        which: ``"ema"`` for the averaged weights, ``"raw"`` for those being trained, ``"auto"`` for the
            averaged ones where there are any.

    Raises:
        UserError: unreadable or hostile file, no weights in it, or not the ones asked for.
    """
    return select_state(read_checkpoint(path), which, str(path))[0]


def select_state(content: Any, which: Which, source: str) -> tuple[dict[str, Tensor], str]:
    """The weights asked for within a file's content, cleaned, and which they are (``"ema"`` or ``"raw"``)."""
    if which not in ("auto", "ema", "raw"):
        raise UserError(
            f"which={which!r} is unknown: use auto, ema (averaged weights) or raw (those trained)"
        )
    if not isinstance(content, Mapping):
        raise UserError(f"{source}: holds a {type(content).__name__}, not weights by name")
    averaged = next((content[key] for key in _EMA if isinstance(content.get(key), Mapping)), None)
    raw = next((content[key] for key in _RAW if isinstance(content.get(key), Mapping)), None)
    if averaged is None and raw is None:
        raw = content
    if which == "ema" and averaged is None:
        raise UserError(f"{source}: holds no averaged (EMA) weights; ask for which='raw' or 'auto'")
    if which == "raw" and raw is None:
        raise UserError(f"{source}: holds averaged (EMA) weights only; ask for which='ema' or 'auto'")
    chosen, name = (averaged, "ema") if averaged is not None and which != "raw" else (raw, "raw")
    assert chosen is not None
    return _clean(chosen, source), name


def _clean(state: Mapping[Any, Any], source: str) -> dict[str, Tensor]:
    """Tensors by name, without the wrappers' prefixes."""
    if not state:
        raise UserError(f"{source}: holds no weights (an empty state dictionary)")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise UserError(
                f"{source}: not a state dictionary: entry {str(key)[:60]!r} is of type {kind}, not a tensor"
            )
    state = {
        key: value for key, value in state.items() if key != "n_averaged"
    }  # torch's AveragedModel counts
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return dict(state)


def fit_error(model: nn.Module, state: Mapping[str, Tensor], source: str, name: str) -> str | None:
    """One line on which weights do not fit a model, by name and shape, or ``None`` when all of them fit.

    Long lists are cut after a few names, with the count. ``source`` and ``name`` say where the weights come
    from and what they should fit.
    """
    wanted = model.state_dict()
    shapes = [
        f"{key} is {list(state[key].shape)}, the model has {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    missing = [key for key in wanted if key not in state]
    unknown = [key for key in state if key not in wanted]
    parts = [
        f"{len(found)} {what} ({_cut(found, between)})"
        for what, found, between in (
            ("of another shape", shapes, "; "),
            ("missing", missing, ", "),
            ("not in the model", unknown, ", "),
        )
        if found
    ]
    return f"{source} does not fit {name}: weights " + ", ".join(parts) if parts else None


def _cut(found: Sequence[str], between: str) -> str:
    rest = len(found) - _SHOWN
    return between.join(found[:_SHOWN]) + (f"{between}and {rest} more" if rest > 0 else "")


def load_weights(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str = "the weights",
    name: str | None = None,
    reset_classifier: bool = False,
) -> None:
    """Load weights into a timm model, strictly, resizing the position table and patch kernel where they
    differ.

    Args:
        model: any timm model; the resizing is timm's, for Vision Transformers. A backbone (``features_only``)
            takes the part of the weights that it has.
        state: weights by name.
        source: what the error calls the weights.
        name: what it calls the model.
        reset_classifier: keep the model's own fresh classifier instead of the saved one (fine-tuning).

    Raises:
        UserError: one line naming the weights that do not fit and their shapes; the model is then
            unchanged.
    """
    backbone = isinstance(model, FeatureGetterNet)
    network = model.get_submodule("model") if backbone else model
    fitted, wanted = adapted(network, state), network.state_dict()
    if backbone:  # blocks behind the last feature, final norm and classifier are pruned from it
        fitted = {key: value for key, value in fitted.items() if key in wanted}
    head = classifier_name(network)
    if reset_classifier or getattr(network, "num_classes", None) == 0:
        own = {key: value for key, value in wanted.items() if key.startswith(head + ".")}
        fitted = {key: value for key, value in fitted.items() if not key.startswith(head + ".")} | own
    error = fit_error(network, fitted, source, name or type(network).__name__)
    if error is not None:
        saved, fresh = fitted.get(head + ".weight"), wanted.get(head + ".weight")
        if saved is not None and fresh is not None and len(saved) != len(fresh):
            error += f"; the saved classifier has {len(saved)} classes: num_classes={len(saved)} keeps it, "
            error += "reset_classifier=True starts a new one"
        raise UserError(error)
    network.load_state_dict(fitted, strict=True)


def adapted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as timm would adapt them to this model: position table and patch kernel resized."""
    if not isinstance(model, VisionTransformer):
        return dict(state)
    table = state.get("pos_embed")
    own = model.pos_embed
    if table is not None and own is not None and (table.ndim != 3 or table.shape[-1] != own.shape[-1]):
        return dict(state)  # another width: nothing to resize, the misfit is reported
    try:
        return dict(checkpoint_filter_fn(dict(state), model))
    except RuntimeError as error:  # a table that is no square grid cannot be reshaped: the misfit is reported
        _log.info("weights taken as they are: %s", error)
        return dict(state)


def classifier_name(model: nn.Module) -> str:
    """State name of the classifier, as the model's own configuration says (timm's convention)."""
    name = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    return str(name if isinstance(name, str) else name[0])
