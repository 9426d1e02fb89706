"""What is done to a whole training batch: the hook, and timm's Mixup and CutMix behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.data import Mixup

from deepvit.data.augmentation import AugmentConfig
from deepvit.errors import UserError

BatchTransform = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]
"""The one hook for anything done to a whole training batch: (images, targets) to (images, targets)."""


def make_mixing(config: AugmentConfig, num_classes: int, batch_size: int) -> BatchTransform | None:
    """timm's Mixup for a resolved config, or None when both are off.

    Its targets are soft, float32 [B, classes], with the label smoothing in them; it changes the images in
    place. Raises ``UserError`` for an odd batch size: images are mixed in pairs.
    """
    if not config.mixes:
        return None
    if batch_size % 2:
        raise UserError(
            f"batch_size={batch_size} must be even with mixup or cutmix, which mix images in pairs"
        )
    mixup: BatchTransform = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.label_smoothing,
        num_classes=num_classes,
    )
    return mixup
