"""The native backend: the streaming backend's sweeps in C++, for float32 and bfloat16 on a processor.

``sweeps.cpp`` has the sweeps, ``build.py`` compiles and loads them, ``sweeps.py`` calls them. A thread's maps stay
in the caches next to it and no operation is called for them, so that Re-attention costs what PyTorch's fused attention
does.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

import torch
from torch import Tensor

from deepvit.ops.native.build import library
from deepvit.ops.native.sweeps import DTYPES, sweep_backward, sweep_forward
from deepvit.ops.registration import register

NAME = "native"
INSTEAD = "ask for backend='streaming', or 'auto'"

_core = register(NAME, sweep_forward, sweep_backward)


def why_not(q: Tensor, dropout_p: float) -> str | None:
    """One line: why this backend cannot run queries like ``q`` [B, H, N, D]; None if it can."""
    if q.device.type != "cpu":
        reason: str | None = f"it is for the processor, and the input is on {q.device.type}"
    elif dropout_p > 0:
        reason = "it has no attention dropout"
    elif q.dtype not in DTYPES:
        reason = f"it has no {str(q.dtype).removeprefix('torch.')}, only float32 and bfloat16"
    elif q.shape[1] <= 2:
        reason = "it has no float64, which one or two heads are computed in"
    else:
        reason = _missing()
    return None if reason is None else f"{reason}; {INSTEAD}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _missing() -> str | None:
    found = library()
    return found if isinstance(found, str) else None


def core(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float, need_stats: bool, dropout_p: float
) -> tuple[Tensor, Tensor, None]:
    """The inner operator as ``core.py`` states it; ``why_not`` must have returned None."""
    o, c, _ = _core(q, k, v, theta, None, scale, need_stats, dropout_p)
    return o, c, None
