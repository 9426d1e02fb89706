"""Re-attention in words that TorchScript reads, every map in memory: for ``torch.jit.script`` and ``torch.jit.trace``.

The definition (``ops/reference.py``) with its maps centred at 1/N, since float32 loses digits of nearly uniform maps
otherwise: theta times a map is theta times the centred map plus a number a head, which joins the bias. In float32, or
float64 where the network is.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

# TorchScript reads these signatures, and knows Optional in every version.
# ruff: noqa: UP045


def centred_maps(q: Tensor, k: Tensor, scale: float, dropout_p: float) -> Tensor:
    """softmax(scale q k^T), after dropout, less 1/N: [B, H, N, N] in float32 or float64."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    maps = torch.softmax((q.to(dtype) * scale) @ k.to(dtype).transpose(-2, -1), dim=-1)
    if dropout_p > 0.0:
        maps = F.dropout(maps, dropout_p)
    return maps - 1.0 / maps.size(-1)


def normalised_by_batch(
    maps: Tensor,
    v: Tensor,
    theta: Tensor,
    theta_bias: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    momentum: float,
    eps: float,
    output_scale: float,
) -> Tensor:
    """BatchNorm(theta P) v with the batch's statistics, which move the running ones; [B, H, N, D] in v's dtype.

    ``maps`` are ``centred_maps``, ``theta`` [H, H, 1, 1] is a convolution's, all others are [H].
    """
    theta, theta_bias = theta.to(maps.dtype), theta_bias.to(maps.dtype)
    offset = (
        theta_bias + theta.sum((1, 2, 3)) / maps.size(-1)
    ).detach()  # what centring took from each mixed map
    mean = running_mean
    var = running_var
    if mean is not None and var is not None:
        mean, var = mean.to(maps.dtype) - offset, var.to(maps.dtype).clone()
    weight = None if weight is None else weight.to(maps.dtype)
    bias = None if bias is None else bias.to(maps.dtype)
    y = F.batch_norm(F.conv2d(maps, theta), mean, var, weight, bias, True, momentum, eps) * output_scale
    if running_mean is not None and running_var is not None and mean is not None and var is not None:
        running_mean.copy_(mean + offset)
        running_var.copy_(var)
    # The norm takes theta's bias away: its gradient is zero, and zero is not "no gradient".
    y = y + (theta_bias * 0.0).view(-1, 1, 1)
    return (y @ v.to(maps.dtype)).to(v.dtype)


def normalised_by_running(
    maps: Tensor,
    v: Tensor,
    theta: Tensor,
    theta_bias: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    eps: float,
    output_scale: float,
) -> Tensor:
    """The same with known statistics, or without a norm where ``running_mean`` is None: one mixture of maps."""
    theta, shift = theta.to(maps.dtype), theta_bias.to(maps.dtype)
    shift = shift + theta.sum((1, 2, 3)) / maps.size(-1)
    gain = torch.full_like(shift, output_scale)
    if running_mean is not None and running_var is not None:
        gain = gain * torch.rsqrt(running_var.to(maps.dtype) + eps)
        if weight is not None:
            gain = gain * weight.to(maps.dtype)
        shift = shift - running_mean.to(maps.dtype)
    shift = gain * shift
    if bias is not None:
        shift = shift + output_scale * bias.to(maps.dtype)
    v_exact = v.to(maps.dtype)
    y = F.conv2d(maps, gain.view(-1, 1, 1, 1) * theta) @ v_exact
    return (y + shift.view(-1, 1, 1) * v_exact.sum(2, keepdim=True)).to(v.dtype)
