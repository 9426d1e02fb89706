"""From the inner operator's (o, c, e) to Re-attention: bias, batch norm, rescaling, running statistics.

Shared by every fast backend, in plain autograd. Batch norm over (B, N, N) is one scale and one shift a head,
so it commutes with the product by V:  out_h = a_h o_h + shift_h u_h,  u_h = sum_n v_h[n].  The mean is 1/N
times a row sum of theta (softmax rows sum to 1); the variance of the mixed maps is the diagonal of
theta C theta^T / count with the H x H matrix C of centred products, or comes from their sums of squares.
Synchronising over processes therefore costs 3 H + 3 numbers a layer.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepvit.ops.collective import all_reduce_sum
from deepvit.ops.core import Core
from deepvit.ops.options import Options


def run_core(core: Core, q: Tensor, k: Tensor, v: Tensor, theta: Tensor, options: Options) -> Tensor:
    """Re-attention by a fast backend's ``core``; the rest as ``deepvit.ops.reattention`` has it."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    theta = theta.to(exact)
    batch, heads, tokens, width = q.shape
    per_row = tokens or 1  # of no token: any number, for a mean that nothing is made with
    u_BH1D = v.sum(dim=2, keepdim=True, dtype=exact)
    row_sum = theta.sum(dim=1)
    bias = theta.new_zeros(heads) if options.theta_bias is None else options.theta_bias.to(exact)
    norm_bias, output_scale, group = options.norm_bias, options.output_scale, options.process_group
    running_mean, running_var = options.running_mean, options.running_var
    scale, dropout_p = options.softmax_scale(width), options.dropout

    if not options.of_batch:
        # Scale and shift are known beforehand: the scale goes into theta, and no statistics are taken.
        mean = bias + row_sum / per_row  # what centring took away from each mixed map
        if options.norm == "none":
            gain = theta.new_full((heads,), output_scale)
            shift = gain * mean
        else:
            assert running_mean is not None
            assert running_var is not None
            gain = _gain(options, running_var.to(exact))
            shift = gain * (mean - running_mean.to(exact))
            if norm_bias is not None:
                shift = shift + _times(output_scale, norm_bias.to(exact))
        o_BHND, _, _ = core(q, k, v, gain[:, None] * theta, scale, False, dropout_p)
        return _affine(o_BHND, None, shift, u_BH1D, v.dtype)

    o_BHND, c, e_H = core(q, k, v, theta, scale, True, dropout_p)
    squares_H = ((theta @ c) * theta).sum(dim=1) if c.dim() == 2 else c
    # An empty batch has no statistics: it leaves the running ones alone and gives zero gradients, as torch's norm does.
    empty = group is None and batch * tokens == 0
    count: Tensor | float = 1 if empty else batch * tokens * tokens
    offset_H = None if e_H is None else e_H / count  # mean of the mixed maps, less their row_sum / tokens
    if group is not None:
        squares_H, offset_H, count = _pool(squares_H, e_H, row_sum, batch, tokens, group)
    var_H = squares_H / count
    if offset_H is not None and group is None:
        var_H = var_H - offset_H.square()
    if running_mean is not None and running_var is not None and not empty:
        with torch.no_grad():
            mean_H = bias + row_sum / per_row + (0.0 if offset_H is None else offset_H)
            running_mean.lerp_(mean_H.to(running_mean.dtype), options.momentum)
            # torch's batch norm keeps the unbiased variance, and normalises by the biased one
            running_var.lerp_((var_H * (count / (count - 1))).to(running_var.dtype), options.momentum)
    gain = _gain(options, var_H)
    shift = theta.new_zeros(heads) if norm_bias is None else _times(output_scale, norm_bias.to(exact))
    if offset_H is not None:
        shift = shift - gain * offset_H
    if options.theta_bias is not None:
        # Batch norm takes the bias away again: its gradient is zero, and zero is not "no gradient", at which
        # distributed data parallel would stop. Not bias * 0, which torch.compile (2.11, 2.12) takes away after it has
        # planned what gradient checkpointing recomputes.
        shift = shift + (bias - bias)
    return _affine(o_BHND, gain, shift, u_BH1D, v.dtype)


def _affine(o: Tensor, gain: Tensor | None, shift: Tensor, u: Tensor, dtype: torch.dtype) -> Tensor:
    """gain_h o_h + shift_h u_h in ``dtype``; ``gain`` None is 1."""
    if torch._C._are_functorch_transforms_active() or not torch.is_grad_enabled():
        return _affine_forward(o, gain, shift, u, dtype)
    out: Tensor = _Affine.apply(o, gain, shift, u, dtype)
    return out


def _affine_forward(o: Tensor, gain: Tensor | None, shift: Tensor, u: Tensor, dtype: torch.dtype) -> Tensor:
    shift_BH1D = (shift.view(-1, 1, 1) * u).to(o.dtype)
    out = o + shift_BH1D if gain is None else torch.addcmul(shift_BH1D, o, gain.view(-1, 1, 1).to(o.dtype))
    # Not .to(dtype) where there is nothing to cast: torch.compile of torch 2.11 takes a function that returns the same
    # tensor twice over for one without a gradient, and gives zeros.
    return out if out.dtype == dtype else out.to(dtype)


class _Affine(torch.autograd.Function):
    """``_affine_forward``, whose gradients of gain and shift are one sum a head: over numbers that may cancel to a
    hundredth of what they are, so that they are added in float64."""

    @staticmethod
    def forward(
        ctx: Any, o: Tensor, gain: Tensor | None, shift: Tensor, u: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(None if gain is None else o, gain, shift, u)
        ctx.dtype = o.dtype
        return _affine_forward(o, gain, shift, u, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        o, gain, shift, u = ctx.saved_tensors
        exact = torch.float32 if grad.device.type == "mps" else torch.float64
        grad = grad.to(ctx.dtype)
        over_tokens = grad.sum(dim=2, keepdim=True, dtype=exact)
        dshift = (over_tokens * u).sum(dim=(0, 2, 3)).to(shift.dtype)
        du = (over_tokens * shift.view(-1, 1, 1)).to(u.dtype)
        if gain is None:
            return grad, None, dshift, du, None
        dgain = (grad * o).sum(dim=(0, 2, 3), dtype=exact).to(gain.dtype)
        return grad * gain.view(-1, 1, 1).to(grad.dtype), dgain, dshift, du, None


def _times(factor: float, x: Tensor) -> Tensor:
    """``factor * x``, without an operation for 1: torch.compile takes that one away again, and then cannot divide a
    network with gradient checkpointing into forward and backward."""
    return x if factor == 1 else factor * x


def _gain(options: Options, var: Tensor) -> Tensor:
    """What a normalised map is multiplied by, one number a head."""
    gain = _times(options.output_scale, torch.rsqrt(var + options.eps))
    return gain if options.norm_weight is None else gain * options.norm_weight.to(var.dtype)


def _pool(
    squares: Tensor, sums: Tensor | None, row_sum: Tensor, batch: int, tokens: int, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of the mixed maps over all processes, whose batch sizes and token numbers may differ.

    ``squares`` and ``sums`` [H] are about this process's own mean, row_sum / N (``sums`` None: zero). Returns
    the sum of squares about the pooled mean [H], the pooled mean less this process's [H], and the count.
    """
    heads, count = squares.shape[0], batch * tokens**2
    # About the pooled 1/N, a process centred at its own 1/N = pooled + d contributes, for each head,
    # squares + 2 row_sum d sums + row_sum^2 d^2 count. In float64: the parts cancel to nothing when all N agree.
    weight = row_sum.double()
    first = torch.zeros_like(weight) if sums is None else sums.double()
    counts = torch.tensor(
        [count, count / tokens, count / tokens**2], dtype=torch.float64, device=squares.device
    )
    local = torch.cat([squares.double(), first, first / tokens, counts])
    squares, first, by_mean, counts = all_reduce_sum(local, group).split([heads, heads, heads, 3])
    total, pooled = counts[0], counts[1] / counts[0]
    between = (counts[2] - pooled.square() * total).clamp_min(0)
    offset = first / total
    about = (
        squares
        + 2 * weight * (by_mean - pooled * first)
        + weight.square() * between
        - offset.square() * total
    )
    mine = offset + weight * (pooled - 1 / tokens)
    dtype = row_sum.dtype
    return about.to(dtype), mine.to(dtype), total.to(dtype)
