"""Regulariser on attention maps: neighbouring blocks should not attend alike.

Shapes: B images, H heads, N tokens, d head width; maps [B, H, N, N], rows are queries and sum to 1.
Source: DeepViT (Zhou et al. 2021, arXiv 2103.11886), the term its 32-block recipe adds with weight 0.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deepvit.errors import UserError
from deepvit.losses.precision import full, no_autocast

ATTENTION_FORMS = ("columns", "official")
# Images a sweep: their maps stay in the cache, which matters more than the size of the products.
CHUNK = 1


@dataclass(frozen=True)
class AttentionInputs:
    """What a block's maps are made from, so that they need not be kept.

    Attributes:
        q, k: [B, H, N, d], after any qk-norm.
        scale: the softmax is taken of scale · q kᵀ.
        mix: for blocks that change the maps after the softmax: maps [B, H, N, N] to maps (may use the whole
            batch, as Re-attention's batch norm does). None for plain attention.
    """

    q: Tensor
    k: Tensor
    scale: float
    mix: Callable[[Tensor], Tensor] | None = None


def attention_cosine(
    maps: Sequence[Tensor | AttentionInputs], form: str = "columns", *, prefix_tokens: int = 0
) -> Tensor:
    """Mean cosine between the maps of neighbouring blocks: 1 when they are equal up to scale.

    ``maps`` holds two or more blocks in order, as maps [B, H, N, N] or as ``AttentionInputs``; neighbours in
    the list are the pairs. With ``AttentionInputs`` maps are made for one image at a time, and the gradient
    in the same sweep, so no N×N map outlives it (a block with ``mix`` is recomputed in the backward pass
    instead, a pair at a time). The first ``prefix_tokens`` rows and columns are ignored.

    - ``"columns"``: cosine of the columns A^p[h, :, t] and A^{p+1}[h, :, t] (how much token t gives to every
      token), mean over heads, tokens, images and pairs. What the paper measures as cross-layer similarity.
    - ``"official"``: the official code's: cosine over the *head* axis at each entry of the maps, mean over
      entries, images and pairs (likely a slip; with one head it is 1 whatever the maps).

    A zero column has cosine 0. Returns a scalar; raises UserError for an unknown form, fewer than two blocks,
    or maps of different shapes.
    """
    if form not in ATTENTION_FORMS:
        raise UserError(f"attention_cosine has no form {form!r}; choose from {', '.join(ATTENTION_FORMS)}")
    if len(maps) < 2:
        raise UserError(f"attention_cosine compares neighbouring blocks and was given {len(maps)}")
    shapes = {tuple(m.shape[:3]) if isinstance(m, Tensor) else tuple(m.q.shape[:3]) for m in maps}
    if len(shapes) > 1:
        raise UserError(f"attention_cosine needs maps of one shape, not {sorted(shapes)}")
    tokens = next(iter(shapes))[2]
    if tokens <= prefix_tokens:
        raise UserError(f"maps of {tokens} tokens with prefix_tokens={prefix_tokens} leave no patch token")

    with no_autocast(maps[0] if isinstance(maps[0], Tensor) else maps[0].q):
        if all(isinstance(m, AttentionInputs) and m.mix is None for m in maps):
            return _from_plain_attention(
                [m for m in maps if isinstance(m, AttentionInputs)], form, prefix_tokens
            )
        total: Tensor | float = 0.0
        for first, second in pairwise(maps):
            if isinstance(first, Tensor) and isinstance(second, Tensor):
                total = total + _cosine(full(first), full(second), form, prefix_tokens)
            else:
                total = total + checkpoint(_pair, first, second, form, prefix_tokens, use_reentrant=False)
        assert isinstance(total, Tensor)
        return total / (len(maps) - 1)


def _cosine(first: Tensor, second: Tensor, form: str, prefix: int) -> Tensor:
    first, second = first[..., prefix:, prefix:], second[..., prefix:, prefix:]
    axis = -2 if form == "columns" else -3
    lengths = torch.linalg.vector_norm(first, dim=axis) * torch.linalg.vector_norm(second, dim=axis)
    nonzero = lengths > torch.finfo(lengths.dtype).tiny
    cosine = (first * second).sum(dim=axis) / torch.where(nonzero, lengths, torch.ones_like(lengths))
    return torch.where(nonzero, cosine, torch.zeros_like(cosine)).mean()


def _softmax_maps(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.softmax((full(q) * scale) @ full(k).transpose(-2, -1), dim=-1)


def _map(block: Tensor | AttentionInputs) -> Tensor:
    if isinstance(block, Tensor):
        return full(block)
    maps = _softmax_maps(block.q, block.k, block.scale)
    return maps if block.mix is None else full(block.mix(maps))


def _pair(
    first: Tensor | AttentionInputs, second: Tensor | AttentionInputs, form: str, prefix: int
) -> Tensor:
    return _cosine(_map(first), _map(second), form, prefix)


def _from_plain_attention(blocks: list[AttentionInputs], form: str, prefix: int) -> Tensor:
    scales = [block.scale for block in blocks]

    def one_sweep(*qk: Tensor) -> Tensor:
        maps = [_softmax_maps(q, k, s) for q, k, s in zip(qk[::2], qk[1::2], scales, strict=True)]
        pairs = [_cosine(a, b, form, prefix) for a, b in pairwise(maps)]
        return torch.stack(pairs).mean() * qk[0].shape[0]

    qk = [tensor for block in blocks for tensor in (block.q, block.k)]
    sweeps = zip(*(tensor.split(CHUNK) for tensor in qk), strict=True)
    parts = [_ValueAndGradient.apply(one_sweep, *tensors) for tensors in sweeps]
    return torch.stack(parts).sum() / qk[0].shape[0]


class _ValueAndGradient(torch.autograd.Function):
    """A scalar function whose gradient is taken at once, so that nothing of its graph is kept or
    recomputed."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if not any(ctx.needs_input_grad):
            return function(*inputs)
        with torch.enable_grad():
            leaves = [
                x.detach().requires_grad_(need)
                for x, need in zip(inputs, ctx.needs_input_grad[1:], strict=True)
            ]
            value = function(*leaves)
            wanted = [x for x in leaves if x.requires_grad]
            found = iter(torch.autograd.grad(value, wanted))
        ctx.save_for_backward(*(next(found) if x.requires_grad else None for x in leaves))
        return value.detach()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(None if g is None else g * upstream[0].to(g.dtype) for g in ctx.saved_tensors)


def head_mix(
    theta: Tensor,
    theta_bias: Tensor | None,
    norm: Any,
) -> Callable[[Tensor], Tensor]:
    """Re-attention's change of the maps: Θ over heads, then the batch norm without touching its running
    statistics.

    ``norm`` is the batch norm over heads, a frozen one, or None.
    ``theta`` is [H, H] or a 1×1 convolution's [H, H, 1, 1]. For ``AttentionInputs.mix``.
    """
    theta = theta.flatten(1)

    def mix(maps: Tensor) -> Tensor:
        mixed = torch.einsum("hg,bgmn->bhmn", theta.to(maps.dtype), maps)
        if theta_bias is not None:
            mixed = mixed + theta_bias.to(maps.dtype)[:, None, None]
        if norm is None:
            return mixed
        frozen = not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm)
        training = not frozen and (norm.training or norm.running_mean is None)
        mean, var = (None, None) if training else (norm.running_mean, norm.running_var)
        return F.batch_norm(mixed, mean, var, norm.weight, norm.bias, training, 0.0, norm.eps)

    return mix
