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

from .collective import all_reduce_sum

NAME = "reference"


def why_not(q: Tensor, dropout_p: float) -> str | None:
    """None: the definition runs on any device, in any floating dtype, with any option."""
    return None


def reattention_maps(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    *,
    theta_bias: Tensor | None = None,
    norm: str = "batch",
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    scale: float | None = None,
    output_scale: float = 1.0,
    dropout_p: float = 0.0,
    process_group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """The attention maps P (softmax) and Y (mixed over heads and normalised), both [B, H, N, N].

    Options are those of :func:`deepvit.ops.reattention`. In half precision the maps are computed and returned
    in float32, because bfloat16 has too few digits for the variance of nearly uniform maps. With
    ``training=True`` the running statistics are updated in place; P is returned as it enters the mixing, that
    is after dropout.
    """
    options: dict[str, Any] = {
        "theta_bias": theta_bias, "norm": norm, "norm_weight": norm_weight, "norm_bias": norm_bias,
        "running_mean": running_mean, "running_var": running_var, "training": training, "momentum": momentum,
        "eps": eps, "output_scale": output_scale, "dropout_p": dropout_p, "process_group": process_group,
    }  # fmt: skip
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _maps(q, k, theta, torch.promote_types(q.dtype, torch.float32), scale=scale, **options)


def _maps(
    q: Tensor,
    k: Tensor,
    theta: Tensor,
    dtype: torch.dtype,
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
) -> tuple[Tensor, Tensor]:
    """P and Y in ``dtype``, which all of it is computed in."""
    q, k = q.to(dtype), k.to(dtype)
    heads = q.shape[1]
    P_BHNN = F.softmax((q * scale) @ k.mT, dim=-1)
    if training and dropout_p > 0:
        P_BHNN = F.dropout(P_BHNN, dropout_p)
    bias = None if theta_bias is None else theta_bias.to(dtype)
    Z_BHNN = F.conv2d(P_BHNN, theta.to(dtype).view(heads, heads, 1, 1), bias)
    norm_weight, norm_bias = (None if x is None else x.to(dtype) for x in (norm_weight, norm_bias))
    if norm == "none":
        Y_BHNN = Z_BHNN
    elif training and process_group is not None:
        Y_BHNN = _synchronised_batch_norm(
            Z_BHNN, norm_weight, norm_bias, running_mean, running_var, momentum, eps, process_group
        )
    else:
        mean = None if running_mean is None else running_mean.to(dtype)
        var = None if running_var is None else running_var.to(dtype)
        Y_BHNN = F.batch_norm(Z_BHNN, mean, var, norm_weight, norm_bias, training, momentum, eps)
        if training and mean is not running_mean:  # the copies in ``dtype`` were updated
            for buffer, updated in ((running_mean, mean), (running_var, var)):
                assert buffer is not None
                assert updated is not None
                buffer.copy_(updated)
    return P_BHNN, Y_BHNN * output_scale


def _synchronised_batch_norm(
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: dist.ProcessGroup,
) -> Tensor:
    """Batch norm of z [B, H, N, N] whose mean and variance are taken over the maps of every process."""
    dims = (0, 2, 3)
    total, count = (
        all_reduce_sum(z.sum(dims), group),
        all_reduce_sum(z.new_tensor(z.numel() / z.shape[1]), group),
    )
    mean = (total / count).view(1, -1, 1, 1)
    var = (all_reduce_sum((z - mean).square().sum(dims), group) / count).view(1, -1, 1, 1)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.flatten().to(running_mean.dtype), momentum)
            running_var.lerp_((var.flatten() * count / (count - 1)).to(running_var.dtype), momentum)
    y = (z - mean) * torch.rsqrt(var + eps)
    y = y if weight is None else y * weight.view(1, -1, 1, 1)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def reattention(
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
    """Y V, [B, H, N, D] in v's dtype, computed in float64 where the device has it and rounded once.

    In float32 the definition as written loses up to three digits in a fresh network: its maps are nearly
    uniform, and the norm divides the rounding of their common part by their tiny deviation.
    """
    dtype = torch.float32 if q.device.type == "mps" else torch.float64
    _, Y_BHNN = _maps(
        q,
        k,
        theta,
        dtype,
        theta_bias=theta_bias,
        norm=norm,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        scale=scale,
        output_scale=output_scale,
        dropout_p=dropout_p,
        process_group=process_group,
    )
    return (Y_BHNN @ v.to(Y_BHNN.dtype)).to(v.dtype)
