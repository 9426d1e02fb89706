"""When a block counts as collapsed, and towards what: the thresholds, per image and for the mean over images.

Each threshold is ours unless a source is named, and every report states it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepvit.collapse.metrics.cross import SIMILAR_THRESHOLD

# Centred maps: whether "alike" is more than "both near uniform". Between unrelated (0) and equal (1).
ALIKE_CENTRED = 0.5
# Uniform: exp(entropy) is at least this share of all keys. At about this share the cosine of two *unrelated*
# maps reaches 0.9, the paper's threshold for similar blocks: the two rules meet without a gap.
UNIFORM_SHARE_OF_KEYS = 0.95
# Untrained: exp(entropy) is at least this share of all keys in *every* block. The scores of a fresh network
# deviate by 0.02^2 times its width (with the usual initialisation): 0.95 holds to width 768, this to 1600.
UNTRAINED_SHARE_OF_KEYS = 0.8
# Sharp: exp(entropy) is below two keys: queries look, on the average, at fewer than two tokens.
SHARP_KEYS = 2.0
# Patches: nearly all of a patch's direction is shared with the other patches.
PATCHES_ALIKE = 0.9
# Worth saying although no collapse; the patch diversification paper shows DeiT-B of 24 layers above 0.7.
PATCHES_HIGH = 0.7


@dataclass(frozen=True)
class BlockNumbers:
    """What the state of one block is read from, a number or one per image; NaN where there is none.

    ``keys`` is how many tokens a query can attend to; ``contrast`` matters only where heads are mixed
    (``mixed``): there entropy says nothing about the map that multiplies V.
    """

    similarity: Tensor
    centred: Tensor
    entropy: Tensor
    contrast: Tensor
    keys: int
    mixed: bool


def is_uniform(block: BlockNumbers, share: float = UNIFORM_SHARE_OF_KEYS) -> Tensor:
    """Whether the softmax maps are near uniform, and where heads are mixed also what multiplies V.

    ``share``: how large a share of the keys exp(entropy) must reach.
    """
    if block.keys < 2:
        return torch.zeros_like(block.entropy, dtype=torch.bool)
    even = block.entropy * math.log(block.keys) >= math.log(share * block.keys)
    if not block.mixed:
        return even
    # The contrast of a softmax map at the threshold: c^2 / 2 = log(1 / share).
    return even & (block.contrast <= math.sqrt(-2 * math.log(share)))


def is_sharp(block: BlockNumbers) -> Tensor:
    """Whether queries attend to fewer than two tokens on the average (geometric mean)."""
    if block.keys <= SHARP_KEYS:
        return torch.zeros_like(block.entropy, dtype=torch.bool)
    return block.entropy * math.log(block.keys) < math.log(SHARP_KEYS)


def is_alike(block: BlockNumbers) -> Tensor:
    """Whether the block repeats the previous block's maps, and these have a shape of their own to repeat."""
    repeats = (block.similarity >= SIMILAR_THRESHOLD) & (block.centred >= ALIKE_CENTRED)
    return repeats & ~is_uniform(block)


def has_patches_alike(similarity: Tensor) -> Tensor:
    """Whether patch similarity P(h) says that all patches carry the same."""
    return similarity >= PATCHES_ALIKE
