"""``config.json``: what timm rebuilds a run's network from."""

from __future__ import annotations

from typing import Any

from torch import nn

from deepvit.runs import ModelCard

CURED = "cured_vit"
KEPT = ("first_conv", "classifier", "pool_size", "license", "paper_ids", "paper_name")
"""What of timm's account of the base still holds for the trained network."""


def configuration(card: ModelCard, network: nn.Module) -> dict[str, Any] | None:
    """The configuration in timm's form; None for a network that is none of timm's with an output a class.

    Args:
        card: of the run.
        network: its deployed network.
    """
    labels, classes = card.problem.labels, card.problem.width
    own: dict[str, Any] = dict(getattr(network, "pretrained_cfg", None) or {})
    if not classes or not own or card.problem.backbone(network) is not network:
        return None
    height, width = card.input.hw
    plain = {"architecture": card.arch, "model_args": dict(card.model_args)}
    cured = {
        "architecture": CURED,
        "model_args": {"base": card.arch, "base_args": dict(card.model_args), "cures": list(card.cures)},
    }
    return {
        **(cured if card.cures else plain),
        "num_classes": classes,
        "num_features": int(network.num_features),  # type: ignore[arg-type]
        **({} if labels is None else {"label_names": list(labels)}),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [len(card.input.mean), height, width],
            "fixed_input_size": bool(own.get("fixed_input_size", False)),
            "interpolation": card.input.interpolation,
            "crop_pct": card.input.crop,
            "crop_mode": "center",
            "mean": list(card.input.mean),
            "std": list(card.input.std),
            "num_classes": classes,
            **{name: own[name] for name in KEPT if own.get(name) is not None},
        },
    }
