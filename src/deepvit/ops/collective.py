"""The one collective that normalisation over workers needs: a sum that gradients flow through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _AllReduceSum(torch.autograd.Function):
    """Sum over processes; the gradient of a sum that every process uses is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def all_reduce_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Sum of ``x`` over the processes of ``group``, in the forward and in the backward pass."""
    result: Tensor = _AllReduceSum.apply(x, group)
    return result


_alone = False


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, norms that synchronise take the statistics of this process: for a pass that the others do not make."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def group_of(given: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group over which a norm synchronises now, by default all processes; None inside ``alone`` or with one process."""
    if _alone or not (dist.is_available() and dist.is_initialized()):
        return None
    group = given if given is not None else dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def mean_over_processes(x: Tensor) -> Tensor:
    """The mean of what every process has, without a gradient; ``x`` itself with one process. All processes must call it.

    Gradients are averaged over processes, so a sum divided by this (each process's own sum by the same number) has the
    gradient of the mean over all of them.
    """
    group = group_of(None)
    if group is None:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)
