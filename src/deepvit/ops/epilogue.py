"""From the inner operator's (o, c, e) to Re-attention: bias, batch norm, rescaling, running statistics.

Shared by every fast backend, in plain autograd. Batch norm over (B, N, N) is one scale and one shift a head,
so it commutes with the product by V:  out_h = a_h o_h + shift_h u_h,  u_h = sum_n v_h[n].  The mean is 1/N
times a row sum of theta (softmax rows sum to 1); the variance is theta C theta^T / count with the H x H
matrix C of centred products. Synchronising over processes therefore costs H^2 + 2 H + 3 numbers a layer.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from .collective import all_reduce_sum
from .core import Core


def run_core(
    core: Core,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    *,
    theta_bias: Tensor | None,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    scale: float,
    output_scale: float,
    dropout_p: float,
    process_group: dist.ProcessGroup | None,
) -> Tensor:
    """Re-attention by a fast backend's ``core``; arguments as ``deepvit.ops.reattention`` resolved them."""
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    theta = theta.to(exact)
    batch, heads, tokens, _ = q.shape
    u_BH1D = v.sum(dim=2, keepdim=True, dtype=exact)
    row_sum = theta.sum(dim=1)
    bias = theta.new_zeros(heads) if theta_bias is None else theta_bias.to(exact)
    dropout_p = dropout_p if training else 0.0

    if norm == "none" or not training:
        # Scale and shift are known beforehand: the scale goes into theta, and no statistics are taken.
        mean = bias + row_sum / tokens  # what centring took away from each mixed map
        if norm == "none":
            gain = theta.new_full((heads,), output_scale)
            shift = gain * mean
        else:
            assert running_mean is not None
            assert running_var is not None
            gain = _gain(norm_weight, running_var.to(exact), eps, output_scale)
            shift = gain * (mean - running_mean.to(exact))
            if norm_bias is not None:
                shift = shift + output_scale * norm_bias.to(exact)
        o_BHND, _, _ = core(q, k, v, gain[:, None] * theta, scale, False, dropout_p)
        return o_BHND + (shift.view(heads, 1, 1) * u_BH1D).to(o_BHND.dtype)

    o_BHND, c_HH, e_H = core(q, k, v, theta, scale, True, dropout_p)
    cov_HH, offset, mean_map, count = _pool(c_HH, e_H, batch, tokens, process_group)
    var_H = ((theta @ cov_HH) * theta).sum(dim=1)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            mean_H = bias + theta @ mean_map
            running_mean.lerp_(mean_H.to(running_mean.dtype), momentum)
            # torch's batch norm keeps the unbiased variance, and normalises by the biased one
            running_var.lerp_((var_H * (count / (count - 1))).to(running_var.dtype), momentum)
    gain = _gain(norm_weight, var_H, eps, output_scale)
    shift = theta.new_zeros(heads) if norm_bias is None else output_scale * norm_bias.to(exact)
    if offset is not None:
        shift = shift - gain * (theta @ offset)
    if theta_bias is not None:
        # Batch norm takes the bias away again: its gradient is zero, and zero is not "no gradient", at which
        # distributed data parallel would stop.
        shift = shift + bias * 0
    gain_H11 = gain.view(heads, 1, 1).to(o_BHND.dtype)
    return torch.addcmul((shift.view(heads, 1, 1) * u_BH1D).to(o_BHND.dtype), o_BHND, gain_H11)


def _gain(weight: Tensor | None, var: Tensor, eps: float, output_scale: float) -> Tensor:
    """What a normalised map is multiplied by, one number a head."""
    gain = output_scale * torch.rsqrt(var + eps)
    return gain if weight is None else gain * weight.to(var.dtype)


def _pool(
    c: Tensor, e: Tensor | None, batch: int, tokens: int, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | float]:
    """Covariance [H, H] of the maps, their mean minus 1/N [H] (None: zero), their mean [H], and the count.

    ``c`` and ``e`` are sums about this process's own 1/N. With a group they are first summed over processes,
    whose batch sizes and token numbers may differ.
    """
    heads = c.shape[0]
    local_count, local_mean = batch * tokens * tokens, 1 / tokens
    if group is None:
        mean = c.new_full((heads,), local_mean)
        if e is None:
            return c / local_count, None, mean, local_count
        offset = e / local_count
        return c / local_count - torch.outer(offset, offset), offset, mean + offset, local_count
    # About the pooled 1/N, a process whose maps are centred at its own 1/N = pooled + d contributes
    # c + e d 1^T + 1 (e d)^T + count d^2. In float64: these cancel to nothing when all N are the same.
    first = c.new_zeros(heads) if e is None else e
    counts = torch.tensor(
        [local_count, local_count * local_mean, local_count * local_mean**2],
        dtype=torch.float64,
        device=c.device,
    )
    local = [c.flatten().double(), first.double(), local_mean * first.double(), counts]
    c_sum, e_sum, e_by_mean, counts = all_reduce_sum(torch.cat(local), group).split(
        [heads**2, heads, heads, 3]
    )
    count, pooled = counts[0], counts[1] / counts[0]
    cross = (e_by_mean - pooled * e_sum).expand(heads, heads)
    between = (counts[2] - pooled.square() * count).clamp_min(0)
    offset = e_sum / count
    covariance = (c_sum.view(heads, heads) + cross + cross.T + between) / count - torch.outer(offset, offset)
    mean = pooled + offset
    covariance, offset, mean, count = (x.to(c.dtype) for x in (covariance, mean - local_mean, mean, count))
    return covariance, offset, mean, count
