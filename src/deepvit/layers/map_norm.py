"""What the norm over heads, a module that people exchange and freeze, means for the operator's arguments."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from deepvit.errors import UserError
from deepvit.layers.synced_norm import Synced, group_over

_FORWARDS = (
    nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, Synced.forward, FrozenBatchNorm2d.forward
)  # fmt: skip
"""A module that computes one of these is known; a subclass with a forward of its own is not."""


def check_norm(norm: nn.Module, mode: str) -> None:
    """Raise UserError unless ``norm`` is one that mode "batch" or "none" is computed with.

    The module's own forward is never called, so that one that computes anything else would be ignored.
    """
    name = type(norm).__name__
    if mode == "none":
        if not isinstance(norm, nn.Identity):
            raise UserError(
                f"ReAttention's var_norm is {name} in a layer made with norm='none'; leave it Identity"
            )
    elif not isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)) or (
        type(norm).forward not in _FORWARDS
    ):
        raise UserError(
            f"ReAttention's var_norm is {name}, which it cannot compute: its norm over heads may be BatchNorm2d, "
            "SyncBatchNorm or FrozenBatchNorm2d"
        )


def check_theta(matrix: nn.Module) -> None:
    """Raise UserError unless ``matrix`` is a plain convolution, whose weight and bias are all that is read of it."""
    if not isinstance(matrix, nn.Conv2d) or type(matrix).forward is not nn.Conv2d.forward:
        raise UserError(
            f"ReAttention's reatten_matrix is {type(matrix).__name__}, which it cannot compute: it reads weight and "
            "bias of a Conv2d"
        )


def norm_arguments(norm: nn.Module, mode: str, x: Tensor | None = None) -> dict[str, Any]:
    """Arguments of ``ops.reattention`` that make it the norm that the module is in its present state.

    The module's mode (and not the layer's) decides which statistics are taken, and a batch that it is to count is
    counted, as in its own forward. ``mode`` is "batch" or "none"; ``x`` is any tensor of this call.

    Raises:
        UserError: the module is none that the operator knows.
    """
    check_norm(norm, mode)
    if mode == "none":
        return {}
    known: dict[str, Any] = {
        "norm_weight": norm.weight,
        "norm_bias": norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
        "eps": norm.eps,
    }
    if isinstance(norm, FrozenBatchNorm2d):
        return {**known, "batch_statistics": False}
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    if norm.training and not norm.track_running_stats:
        known |= {"running_mean": None, "running_var": None}
    momentum: float | None = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        momentum = _count_batch(x, norm.num_batches_tracked, norm.momentum)
    elif _recomputing():
        momentum = 0.0
    return {
        **known,
        "batch_statistics": norm.training or norm.running_mean is None,
        "momentum": momentum,
        "process_group": group_over(norm),
    }


# One node of a graph made by torch.fx, so that a batch is counted when the graph runs and not when it is made;
# ``x`` tells torch.fx that it is tracing.
@torch.fx.wrap  # type: ignore[untyped-decorator]
def _count_batch(x: Tensor | None, counted: Tensor, momentum: float | None) -> float:
    """Count one more batch; the weight of its statistics, a cumulative average's where ``momentum`` is None."""
    if _recomputing():
        return 0.0  # the batch was counted in the forward pass
    counted.add_(1)
    return 1.0 / float(counted) if momentum is None else momentum


def _recomputing() -> bool:
    """Whether gradient checkpointing runs this forward pass a second time, within the backward pass."""
    # The same question to autograd that torch.utils.checkpoint asks; under the compiler it is never so.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
