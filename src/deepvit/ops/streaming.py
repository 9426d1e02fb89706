"""The streaming backend: maps are made block by block, used, and forgotten; any device, any floating dtype.

The arithmetic is in ``sweeps.py``, the sizes of the blocks in ``blocking.py``, the threads in ``lanes.py``.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

import torch
from torch import Tensor

from deepvit.ops.registration import register
from deepvit.ops.sweeps import sweep_backward, sweep_forward

NAME = "streaming"

_core = register(NAME, sweep_forward, sweep_backward)


def why_not(q: Tensor, dropout_p: float) -> str | None:
    """None: runs on any device, in any floating dtype, with dropout."""
    return None


def core(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float, need_stats: bool, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inner operator (see ``core.py``). Dropout draws one seed from torch's CPU generator.

    With one or two heads it computes in float64: a gradient that is a number a head has nothing beside it then,
    and where it cancels by chance float32 keeps too few digits. Nobody waits for networks of two heads.
    """
    if q.shape[1] <= 2 and q.device.type != "mps":
        theta = theta.double()
    # A seed and not a mask is what the backward pass needs: the mask is drawn again, block by block.
    seed = torch.randint(2**62, (), dtype=torch.int64) if dropout_p > 0 else None
    o, c, e = _core(q, k, v, theta, seed, scale, need_stats, dropout_p)
    return o, c, e if dropout_p > 0 else None
