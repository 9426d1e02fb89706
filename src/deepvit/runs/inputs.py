"""What a network wants as input."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from deepvit.data import InputSpec
from deepvit.data.augmentation import SMALL_SIDE


def input_of(model: nn.Module, arguments: dict[str, Any]) -> InputSpec:
    """What the model wants as input, by timm's account of it."""
    found = timm.data.resolve_model_data_config(model)
    size = arguments.get("img_size", found["input_size"][-1])
    size = size if isinstance(size, int) else tuple(size)
    small = (size if isinstance(size, int) else max(size)) <= SMALL_SIDE
    return InputSpec(
        size=size,
        mean=found["mean"],
        std=found["std"],
        interpolation=found["interpolation"],
        crop_pct=1.0 if small else found["crop_pct"],  # nothing of a small image is to spare
    )
