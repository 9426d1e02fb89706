"""Re-attention as it is defined, every map in memory: the ground truth for the fast backends' tests.

Definition: DeepViT, Zhou et al. 2021 (arXiv 2103.11886), in the official code's order: scale, softmax,
dropout, a 1x1 convolution over heads (theta and its bias), batch norm over heads, output scale, times V.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from deepvit.ops.collective import all_reduce_sum
from deepvit.ops.options import Options

NAME = "reference"


def why_not(q: Tensor, dropout_p: float) -> str | None:
    """None: the definition runs on any device, in any floating dtype, with any option."""
    return None


def reattention_maps(q: Tensor, k: Tensor, theta: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The attention maps P (softmax) and Y (mixed over heads and normalised), both [B, H, N, N].

    Options are those of :func:`deepvit.ops.reattention`, without ``backend``. In half precision the maps are
    computed and returned in float32, because bfloat16 has too few digits for the variance of nearly uniform maps.
    With ``training=True`` the running statistics are updated in place; P is returned as it enters the mixing,
    that is after dropout.
    """
    return _maps(q, k, theta, Options(**options), torch.promote_types(q.dtype, torch.float32))


def _maps(q: Tensor, k: Tensor, theta: Tensor, options: Options, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """P and Y in ``dtype``, which all of it is computed in."""
    q, k = q.to(dtype), k.to(dtype)
    heads, width = q.shape[1], q.shape[3]
    P_BHNN = F.softmax((q * options.softmax_scale(width)) @ k.mT, dim=-1)
    if options.dropout > 0:
        P_BHNN = F.dropout(P_BHNN, options.dropout)
    bias, weight, shift = (
        None if x is None else x.to(dtype)
        for x in (options.theta_bias, options.norm_weight, options.norm_bias)
    )
    Z_BHNN = F.conv2d(P_BHNN, theta.to(dtype).view(heads, heads, 1, 1), bias)
    if options.norm == "none":
        Y_BHNN = Z_BHNN
    elif options.of_batch and options.process_group is not None:
        Y_BHNN = _synchronised_batch_norm(Z_BHNN, weight, shift, options, options.process_group)
    else:
        buffers = options.running_mean, options.running_var
        mean, var = (None if x is None else x.to(dtype) for x in buffers)
        Y_BHNN = F.batch_norm(
            Z_BHNN, mean, var, weight, shift, options.of_batch, options.momentum, options.eps
        )
        if options.of_batch and mean is not buffers[0]:  # the copies in ``dtype`` were updated
            for buffer, updated in zip(buffers, (mean, var), strict=True):
                assert buffer is not None
                assert updated is not None
                buffer.copy_(updated)
    return P_BHNN, Y_BHNN * options.output_scale


def _synchronised_batch_norm(
    z: Tensor, weight: Tensor | None, bias: Tensor | None, options: Options, group: dist.ProcessGroup
) -> Tensor:
    """Batch norm of z [B, H, N, N] whose mean and variance are taken over the maps of every process."""
    dims = (0, 2, 3)
    total, count = (
        all_reduce_sum(z.sum(dims), group),
        all_reduce_sum(z.new_tensor(z.numel() / z.shape[1]), group),
    )
    mean = (total / count).view(1, -1, 1, 1)
    var = (all_reduce_sum((z - mean).square().sum(dims), group) / count).view(1, -1, 1, 1)
    running_mean, running_var = options.running_mean, options.running_var
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.flatten().to(running_mean.dtype), options.momentum)
            running_var.lerp_((var.flatten() * count / (count - 1)).to(running_var.dtype), options.momentum)
    y = (z - mean) * torch.rsqrt(var + options.eps)
    y = y if weight is None else y * weight.view(1, -1, 1, 1)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def reattention(q: Tensor, k: Tensor, v: Tensor, theta: Tensor, options: Options) -> Tensor:
    """Y V, [B, H, N, D] in v's dtype, computed in float64 where the device has it and rounded once.

    In float32 the definition as written loses up to three digits in a fresh network: its maps are nearly
    uniform, and the norm divides the rounding of their common part by their tiny deviation.
    """
    dtype = torch.float32 if q.device.type == "mps" else torch.float64
    _, Y_BHNN = _maps(q, k, theta, options, dtype)
    return (Y_BHNN @ v.to(Y_BHNN.dtype)).to(v.dtype)
