"""Depth-scaled norm: the deeper the block, the smaller what its branches read.

Mechanism: with norms before the branches the stream's variance grows with depth, and deep blocks come near the
identity; scaling each norm's output by the depth holds the growth, so that deep blocks have something to do.

Formula: ``norm(x) / √l`` before both branches of block l, l = 1 for the first.
Source: "The Curse of Depth in Large Language Models", LayerNorm scaling (arXiv 2502.05795).
Cost: none worth counting; no parameters.
Start: not the identity, except in the first block: for training from scratch.
Helps: deep blocks that add little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deepvit.cures.branches import BRANCHES, pre_norm_blocks
from deepvit.cures.cure import Cure
from deepvit.cures.target import add_part
from deepvit.errors import UserError


class DepthScale(nn.Module):
    """A norm's output times ``scale``."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def change(self, _norm: nn.Module, _inputs: Any, normed: Tensor) -> Tensor:
        """Hook after the norm."""
        return normed * self.scale


@dataclass(frozen=True)
class Options:
    """Depth-scaled norm has none: the block's number says it all."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it on both norms of these blocks; raises UserError where they do not stand before the branches."""
    if blocks == [0]:
        raise UserError(
            "depth_scaled_norm divides by the root of the block's number, which is 1 in block 0 alone"
        )
    for number, block in zip(blocks, pre_norm_blocks(model, blocks, "depth_scaled_norm"), strict=True):
        part = DepthScale((number + 1) ** -0.5)
        add_part(block, "depth_scale", part)
        for norm, _ in BRANCHES:
            getattr(block, norm).register_forward_hook(part.change)


CURE = Cure(
    name="depth_scaled_norm",
    mechanism="norms before the branches over the root of the depth: norm(x)/√l in block l",
    source="arXiv 2502.05795 (LayerNorm scaling)",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=False,
    slots=frozenset({"norms"}),
    helps="deep blocks that add little",
)
