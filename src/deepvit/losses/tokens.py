"""Patch tokens out of what a block returns."""

from __future__ import annotations

from torch import Tensor

from deepvit.errors import UserError
from deepvit.losses.precision import full


def patch_tokens(tokens: Tensor, prefix_tokens: int = 0) -> Tensor:
    """The patch tokens [B, N, C] of [B, prefix + N, C], or of a grid [B, h, w, C] (which has no prefix
    tokens).

    Raises UserError for any other number of axes, or when nothing is left after the prefix.
    """
    if tokens.ndim == 4:
        tokens = tokens.flatten(1, 2)
        prefix_tokens = 0
    if tokens.ndim != 3:
        raise UserError(f"patch tokens must be [B, N, C] or [B, h, w, C], not {list(tokens.shape)}")
    if tokens.shape[1] <= prefix_tokens:
        raise UserError(f"{tokens.shape[1]} tokens with prefix_tokens={prefix_tokens} leave no patch token")
    return tokens[:, prefix_tokens:]


def same_places(tokens: Tensor, teacher: Tensor, prefix_tokens: int) -> tuple[Tensor, Tensor]:
    """Patch tokens [B, N, C] of a network and of its teacher in float32 at least, place by place.

    Raises UserError when the two have different numbers of images or patches.
    """
    x, y = full(patch_tokens(tokens, prefix_tokens)), full(patch_tokens(teacher, prefix_tokens))
    if x.shape[:2] != y.shape[:2]:
        raise UserError(
            f"the teacher has {y.shape[1]} patch tokens for {len(y)} images, the network {x.shape[1]} for {len(x)}: "
            "take a teacher of the same patch grid"
        )
    return x, y
