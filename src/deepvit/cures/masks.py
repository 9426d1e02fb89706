"""Means over the tokens that a padding mask leaves: padded tokens must not move what a cure computes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.errors import UserError

# Additive masks at or below this let nothing through: exp(-1000) is 0 in every dtype.
_OUT = -1000.0


def mask_place(module: nn.Module) -> int:
    """At which position ``module.forward`` takes ``attn_mask``; −1 where it takes none."""
    names = list(inspect.signature(module.forward).parameters)
    return names.index("attn_mask") if "attn_mask" in names else -1


def find_mask(inputs: tuple[Any, ...], given: dict[str, Any], place: int, cure: str) -> Tensor | None:
    """The mask that a call was given, None without one; refuses causal attention, whose tokens see only some."""
    if given.get("is_causal"):
        raise UserError(f"{cure} takes no is_causal=True: its mean is over all tokens")
    mask: Tensor | None = given.get("attn_mask")
    if mask is None and 0 < place < len(inputs):
        mask = inputs[place]
    return mask


def _allowed(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where a query may look at a key, [B or 1, H or 1, N or 1, N]."""
    open_ = mask if mask.dtype == torch.bool else mask > _OUT
    while open_.ndim < 4:
        open_ = open_.unsqueeze(0 if open_.ndim < 3 else 1)
    return open_.to(dtype)


def valid_tokens(mask: Tensor, tokens: Tensor) -> Tensor:
    """1 for real tokens and 0 for padding, [B or 1, N, 1]: a padded token may not even look at itself."""
    allowed = _allowed(mask, tokens.dtype).amax(dim=1)
    own = allowed.diagonal(dim1=1, dim2=2) if allowed.shape[1] > 1 else allowed[:, 0]
    return own.unsqueeze(-1)


def token_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens, [B, 1, C] of [B, N, C]."""
    if mask is None:
        return tokens.mean(dim=1, keepdim=True)
    valid = valid_tokens(mask, tokens)
    return (tokens * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)


def uniform_attention(values: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """What attention would give if every query looked at all the keys that it may look at alike.

    ``values`` [B, N, D], heads one after another in D; the result is [B, 1, D], or [B, N, D] with a mask that
    differs by query. A query that may look at nothing gets 0.
    """
    if mask is None:
        return values.mean(dim=1, keepdim=True)
    allowed = _allowed(mask, values.dtype)
    weight = allowed / allowed.sum(dim=-1, keepdim=True).clamp_min(1)
    b, n, _ = values.shape
    by_head = values.view(b, n, heads, -1).transpose(1, 2)
    return (weight.expand(b, heads, -1, -1) @ by_head).transpose(1, 2).reshape(b, -1, values.shape[-1])
