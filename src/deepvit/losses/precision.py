"""The losses compute in float32 whatever the network computes in; this file holds the two rules for that."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in at least float32: half types are raised, float64 stays (the tests compare in it)."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which matrix products keep their operands' dtype, also inside the caller's autocast."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def unit(x: Tensor) -> Tensor:
    """``x`` divided by its length along the last axis; a zero vector stays zero and gets no gradient.

    A clamp of the length instead would hand a zero vector a gradient of 1/clamp, which is what makes a
    training run explode on the one blank patch.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    nonzero = length > torch.finfo(x.dtype).tiny
    return torch.where(
        nonzero, x / torch.where(nonzero, length, torch.ones_like(length)), torch.zeros_like(x)
    )
