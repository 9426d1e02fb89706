"""Batch norms that take their statistics over all processes, on any device (torch's own refuses the CPU)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepvit.ops.collective import all_reduce_sum, group_of


class Synced:
    """Mixed into a batch norm: its training statistics are those of all processes. [B, C, ...] to the same shape.

    What it is otherwise, its class, names and values of its state, stays: it is still a ``BatchNorm2d``.
    """

    process_group: dist.ProcessGroup | None = None

    def forward(self: Any, x: Tensor) -> Tensor:
        """Normalise by the statistics of all processes in training, else as the class that this is mixed into."""
        group = group_of(self.process_group) if self.training else None
        if group is None:
            result: Tensor = super().forward(x)  # type: ignore[misc]
            return result
        y = normalised(self, x, group)
        for part in ("drop", "act"):  # timm's norms with an activation
            y = getattr(self, part)(y) if isinstance(self, BatchNormAct2d) else y
        return y


def normalised(norm: Any, x: Tensor, group: dist.ProcessGroup, *, counts: bool = True) -> Tensor:
    """Batch norm over the processes of a group, in float32 (float64 stays).

    Args:
        norm: the module, in training mode.
        x: [B, C, ...].
        group: the processes, which all come here.
        counts: whether the running statistics take the batch in.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    values = x if x.dtype == torch.float64 else x.float()
    count = values.new_full((1,), x.numel() / x.shape[1])
    var, mean = torch.var_mean(values, axes, correction=0)
    # Each process's mean and variance are combined as they are (Chan et al. 1979): no squares of large means cancel.
    sums = all_reduce_sum(torch.cat([count, count * mean]), group)
    total, overall = sums[0].detach(), sums[1:] / sums[0].detach()
    spread = all_reduce_sum(count * (var + (mean - overall).square()), group) / total
    if counts and norm.track_running_stats and norm.running_mean is not None:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            share = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            for running, new in (
                (norm.running_mean, overall),
                (norm.running_var, spread * (total / (total - 1))),
            ):
                running.lerp_(new.to(running.dtype), share)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    y = (values - overall.view(shape)) * torch.rsqrt(spread + norm.eps).view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def group_over(norm: Any) -> dist.ProcessGroup | None:
    """The group over which a norm synchronises now; None for one that does not, or alone."""
    synced = isinstance(norm, nn.SyncBatchNorm | Synced)
    return group_of(norm.process_group) if synced and norm.training else None


_CLASSES: dict[type[Any], type[Any]] = {}


def synchronise(network: nn.Module) -> nn.Module:
    """Let every batch norm of a network take its training statistics over all processes of torch.distributed, in place.

    Re-attention's norm over heads is synchronised by the H×H sums of its maps. Norms with arithmetic of their own stay,
    unless they say by ``synchronises = True`` that over several processes they are a plain batch norm.
    """
    for module in network.modules():
        kind = type(module)
        plain = kind.forward in (_BatchNorm.forward, BatchNormAct2d.forward)
        if not plain and not getattr(kind, "synchronises", False):
            continue
        if kind not in _CLASSES:
            _CLASSES[kind] = type(f"Synced{kind.__name__}", (Synced, kind), {})
        module.__class__ = _CLASSES[kind]
    return network
