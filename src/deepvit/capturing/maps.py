"""The attention map behind a fused operator, rebuilt, and the proof of it: map times V is the output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# Largest |difference| over largest |output| that rounding explains: sums over tokens in another order, and in
# half precision an output rounded to 8 (bfloat16) or 11 (float16) bits of maps that were rounded to the same.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_TF32_TOLERANCE = 5e-3
_BUFFER_BYTES = 4 << 20  # scores of so many heads at a time: they stay in cache


def tolerance(out: Tensor) -> float:
    """How far a rebuilt output may lie from ``out``, as a share of its largest entry."""
    if out.dtype == torch.float32 and out.is_cuda and torch.backends.cuda.matmul.allow_tf32:
        return _TF32_TOLERANCE
    return _TOLERANCE[out.dtype]


def exact(t: Tensor) -> Tensor:
    """``t`` without gradient, and in float32 if it was in half precision."""
    t = t.detach()
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


@contextmanager
def aside(like: Tensor) -> Iterator[None]:
    """Own computation, and that of consumers: without gradient, outside autocast, unseen by any mode."""
    with torch.no_grad(), torch._C.DisableTorchFunction(), torch.autocast(like.device.type, enabled=False):
        yield


def relative_error(rebuilt: Tensor, out: Tensor) -> float:
    """Largest absolute difference over the largest absolute output; NaN where either holds a NaN."""
    if out.numel() == 0:
        return 0.0
    out = exact(out)
    difference = (rebuilt.to(out.dtype) - out).abs().amax()
    scale = out.abs().amax().clamp_min(torch.finfo(out.dtype).tiny)
    return float(difference / scale)


def sdpa_map(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, float]:
    """The softmax map of ``scaled_dot_product_attention`` and the error of map times V against its output.

    ``q`` [B, H, N, D], ``k`` [B, H, M, D], ``v`` [B, H, M, Dv], ``out`` [B, H, N, Dv] (grouped heads already
    repeated), ``attn_mask`` [B, H, N, M]. Masks and scale mean what torch defines: a bool mask is True where
    a key takes part, any other is added to the scaled scores, the causal mask is the lower triangle from the
    upper left, the default scale is D^-1/2; a row without any key is zero. Returns the map [B, H, N, M] in
    float32 (float64 for float64 input) and the largest absolute difference over the largest absolute output.
    Source: torch.nn.functional.scaled_dot_product_attention, reference form in its documentation.
    """
    images, heads, n, m = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    mask = _mask(attn_mask, is_causal, (images, heads, n, m), q.device)
    flat = [exact(t).flatten(0, 1) for t in (q, k, v, out)]  # one head of one image after the other
    queries, keys, values, wanted = flat[0] * scale, flat[1].mT, flat[2], flat[3]
    attention = queries.new_empty(images * heads, n, m)
    # The same two small buffers for every step: fresh memory for each would cost more than the arithmetic.
    step = max(1, _BUFFER_BYTES // max(1, n * m * attention.element_size()))
    scores_buffer = queries.new_empty(min(step, images * heads), n, m)
    out_buffer = queries.new_empty(min(step, images * heads), n, v.shape[-1])
    difference = torch.zeros((), dtype=attention.dtype, device=q.device)
    for start in range(0, images * heads, step):
        part = slice(start, start + step)
        now = attention[part]
        scores, rebuilt = scores_buffer[: len(now)], out_buffer[: len(now)]
        torch.bmm(queries[part], keys[part], out=scores)
        if mask is not None:
            here = torch.arange(start, start + len(now), device=q.device)
            masked = mask[here // heads, here % heads]
            if mask.dtype == torch.bool:
                scores.masked_fill_(~masked, -math.inf)
            else:
                scores.add_(masked)
        torch.softmax(scores, dim=-1, out=now)
        if mask is not None:
            empty = ~masked if mask.dtype == torch.bool else masked == -math.inf
            now.masked_fill_(empty.all(dim=-1, keepdim=True), 0.0)
        torch.bmm(now, values[part], out=rebuilt)
        difference = torch.maximum(difference, rebuilt.sub_(wanted[part]).abs_().amax())
    largest = wanted.abs().amax().clamp_min(torch.finfo(attention.dtype).tiny)
    return attention.view(images, heads, n, m), float(difference / largest)


def _mask(
    attn_mask: Tensor | None, is_causal: bool, shape: tuple[int, int, int, int], device: torch.device
) -> Tensor | None:
    """The mask as [B, H, N, M] (no copy)."""
    if is_causal:
        assert attn_mask is None, "torch refuses a mask together with is_causal"
        return torch.ones(shape[2:], dtype=torch.bool, device=device).tril().expand(shape)
    return None if attn_mask is None else attn_mask.detach().expand(shape)
