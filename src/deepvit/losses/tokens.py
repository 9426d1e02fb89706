"""Patch tokens out of what a block returns."""

from __future__ import annotations

from torch import Tensor

from deepvit.errors import UserError


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
