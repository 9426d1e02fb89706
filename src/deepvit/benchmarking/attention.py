"""Suite ``attention``: Re-attention's backends against SDPA on plain attention, which is the floor."""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.benchmarking.measure import against, exponent, in_turn, isolated, machine, peak_extra
from deepvit.benchmarking.official import official_reattention
from deepvit.errors import UserError
from deepvit.ops import available_backends, reattention

FLOOR = "SDPA (plain attention)"
OFFICIAL = "official formulation"
DTYPES = ("float32", "bfloat16", "float16")
SIZES = (17, 65, 197, 577, 1025)


@dataclass(frozen=True)
class Case:
    """One shape of attention, in one dtype and mode."""

    images: int
    tokens: int
    dtype: str
    train: bool
    heads: int = 12
    head_width: int = 32

    def __str__(self) -> str:
        return f"{self.images} × {self.tokens} tokens, {self.heads} heads of {self.head_width}"


def run_attention_suite(
    sizes: Sequence[int] = SIZES,
    rounds: int = 15,
    seconds: float = 20.0,
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    backends: Sequence[str] | None = None,
    heads: int = 12,
    head_width: int = 32,
    images: int | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """Time and peak memory of every backend over N, dtype and mode, all sides in turn, and their growth with N.

    A side starts from a packed qkv [B, N, 3, H, D], as a layer has it, and ends with [B, H, N, D]; a training
    row has the backward pass to qkv and to every parameter. The official formulation (1x1 convolution, batch
    norm, all maps in memory) is always beside them.

    Args:
        sizes: token numbers N, 2 or more.
        rounds: counted rounds a row.
        seconds: stop counting after so long a row (at least three rounds).
        dtypes: float32, bfloat16, float16.
        backends: names; None is all that can run here.
        heads: H.
        head_width: D.
        images: B; None is about 1,600 tokens a call.
        memory: also measure peak memory, each side in a process of its own.

    Raises:
        UserError: an unknown dtype, a size below 2, or a backend that cannot run here.
    """
    if unknown := [name for name in dtypes if name not in DTYPES]:
        raise UserError(f"dtype {unknown[0]!r} is unknown here; choose among {', '.join(DTYPES)}")
    if not sizes or min(sizes) < 2:
        raise UserError(f"sizes={list(sizes)}: give token numbers of 2 or more")
    rows = []
    for tokens in sizes:
        for dtype in dtypes:
            sides = _sides(dtype, tokens, heads, head_width, backends)
            for train in (False, True):
                batch = images if images is not None else max(1, 1600 // tokens)
                case = Case(batch, tokens, dtype, train, heads, head_width)
                rows.append(_row(case, sides, rounds, seconds, memory))
    sides = _sides("float32", max(sizes), heads, head_width, backends)
    growth = (
        {side: _growth(side, sizes, heads, head_width, memory) for side in sides} if len(sizes) > 1 else {}
    )
    return {"suite": "attention", "floor": FLOOR, **machine(), "rows": rows, "growth_with_tokens": growth}


def _sides(
    dtype: str, tokens: int, heads: int, head_width: int, backends: Sequence[str] | None
) -> tuple[str, ...]:
    """The floor, the backends that run this dtype here (or those asked for) and the official formulation."""
    probe = torch.empty(1, heads, tokens, head_width, device=_device(), dtype=getattr(torch, dtype))
    # The definition in float64 is for tests; what people run instead is the official formulation.
    able = [name for name in available_backends(probe) if name != "reference"]
    return (FLOOR, *(able if backends is None else backends), OFFICIAL)


def prepare(side: str, case: Case) -> Callable[[], object]:
    """Make one side's inputs; returns what to run."""
    draw, device = torch.Generator().manual_seed(0), _device()
    dtype, heads = getattr(torch, case.dtype), case.heads
    shape = (case.images, case.tokens, 3, heads, case.head_width)
    qkv = torch.randn(shape, generator=draw).to(device=device, dtype=dtype).requires_grad_(case.train)
    grad = torch.randn(shape, generator=draw)[:, :, 0].to(device=device, dtype=dtype).transpose(1, 2)

    def attend(call: Callable[..., Tensor], **options: Any) -> Tensor:
        return call(*(x.transpose(1, 2) for x in qkv.unbind(2)), **options)

    parameters: dict[str, Tensor] = {}
    if side == FLOOR:

        def forward() -> Tensor:
            return attend(F.scaled_dot_product_attention)
    else:
        parameters = {
            "theta": (torch.rand(heads, heads, generator=draw) * 2 - 1) * heads**-0.5,
            "theta_bias": torch.zeros(heads),
            "norm_weight": torch.ones(heads),
            "norm_bias": torch.zeros(heads),
        }
        parameters = {name: x.to(device).requires_grad_(case.train) for name, x in parameters.items()}
        running = {
            "running_mean": torch.zeros(heads, device=device),
            "running_var": torch.ones(heads, device=device),
        }

        def forward() -> Tensor:
            if side == OFFICIAL:
                return attend(official_reattention, **parameters, **running, training=case.train)
            return attend(reattention, **parameters, **running, training=case.train, backend=side)

    def evaluate() -> object:
        with torch.no_grad():
            return forward()

    def train() -> object:
        return torch.autograd.grad(forward(), (qkv, *parameters.values()), grad)

    return train if case.train else evaluate


def memory_of(case: Case, side: str) -> int | None:
    """Peak extra bytes of one call in this process, after a small one that wakes the libraries."""
    return peak_extra(prepare(side, case), first=prepare(side, replace(case, images=2, tokens=8)))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _row(case: Case, sides: Sequence[str], rounds: int, seconds: float, memory: bool) -> dict[str, Any]:
    calls = {side: prepare(side, case) for side in sides}
    found: dict[str, dict[str, Any]] = against(in_turn(calls, rounds, warmup=2, seconds=seconds), FLOOR)
    calls.clear()
    result: dict[str, Any] = {
        "case": str(case),
        **asdict(case),
        "mode": "train" if case.train else "eval",
        "sides": found,
    }
    if memory:
        used = {side: isolated(memory_of, case, side) for side in sides}
        for side, value in used.items():
            found[side]["peak_extra_bytes"] = value
            found[side]["memory_ratio"] = value / used[FLOOR] if value and used[FLOOR] else None
    return result


def _growth(side: str, sizes: Sequence[int], heads: int, head_width: int, memory: bool) -> dict[str, Any]:
    """Seconds and bytes of forward and backward over N for a fixed batch (two images), float32, with exponents."""
    times, peaks = [], []
    for tokens in sizes:
        case = Case(2, tokens, "float32", True, heads, head_width)
        times.append(against(in_turn({side: prepare(side, case)}, 3, warmup=1), side)[side]["median_s"])
        if memory:
            peaks.append(isolated(memory_of, case, side))
    found: dict[str, Any] = {
        "tokens": list(sizes),
        "train_s": times,
        "exponent": exponent(list(sizes), times),
    }
    if memory and None not in peaks:
        found |= {"peak_extra_bytes": peaks, "memory_exponent": exponent(list(sizes), peaks)}
    return found
