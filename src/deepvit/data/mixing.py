"""Mixup and CutMix on batches by timm's class, with draws that are a function of a key only."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from timm.data import Mixup

from deepvit.data.config import AugmentConfig
from deepvit.errors import UserError

Tensor = torch.Tensor
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The hook for anything done to a whole training batch: (images, labels) to (images, targets)."""


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


def seed_of(*key: int) -> int:
    """A 63-bit seed that is a function of whole numbers ≥ 0 such as (seed, epoch, rank, batch)."""
    # NumPy ignores trailing zeros, so the number of parts goes first
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from ``seed`` inside, and go on as before after.

    timm's transforms draw from the global generators; user code around the loader must not notice.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerators' too
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
