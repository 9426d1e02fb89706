"""Suite ``model``: whole networks with Re-attention against timm's ViT of the same shape."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.benchmarking.measure import against, exponent, in_turn, isolated, machine, peak_extra
from deepvit.benchmarking.official import make_official

PLAIN = "timm ViT (SDPA)"
OFFICIAL = "official formulation"
REFERENCE = "backend reference (float64)"
SIDES = (PLAIN, "deepvit", OFFICIAL, REFERENCE)
CLASSES = 100


@dataclass(frozen=True)
class Case:
    """One network shape on one kind of batch."""

    images: int
    img_size: int
    patch_size: int = 16
    depth: int = 16
    embed_dim: int = 384
    num_heads: int = 12
    sides: tuple[str, ...] = SIDES[:3]

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.img_size // self.patch_size) ** 2 + 1

    def __str__(self) -> str:
        return f"{self.images} × {self.img_size}², {self.tokens} tokens, {self.depth} × {self.embed_dim}"


CASES = (
    Case(8, 224),
    Case(2, 384, sides=SIDES),
    Case(32, 8, patch_size=2, embed_dim=96, num_heads=4),
    Case(32, 32, patch_size=4, embed_dim=192, num_heads=12),
)
TINY = (Case(2, 8, patch_size=4, depth=2, embed_dim=16, num_heads=2),)
DEPTHS = (4, 8, 16)


def build(case: Case, side: str) -> nn.Module:
    """The network of a side: timm's own ViT, or DeepViT with the fastest backend, computed the official way, or with
    the backend that tests compare with; MLP ratio 3 in all."""
    shape: dict[str, Any] = {
        "img_size": case.img_size, "patch_size": case.patch_size, "depth": case.depth, "embed_dim": case.embed_dim,
        "num_heads": case.num_heads, "num_classes": CLASSES,
    }  # fmt: skip
    if side == PLAIN:
        return timm.create_model("vit_small_patch16_224", mlp_ratio=3.0, **shape)  # type: ignore[no-any-return]
    backend = "reference" if side == REFERENCE else "auto"
    model = timm.create_model("deepvit_d16_patch16_224", backend=backend, **shape)
    return make_official(model) if side == OFFICIAL else model


def stepper(model: nn.Module, case: Case, dtype: torch.dtype, train: bool) -> Callable[[], Any]:
    """A forward pass in evaluation, or a whole training step with AdamW, under autocast for bfloat16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device).train(train)
    images = torch.randn(case.images, 3, case.img_size, case.img_size, device=device)
    labels = torch.randint(CLASSES, (case.images,), device=device)
    half: Any = contextlib.nullcontext()
    if dtype != torch.float32:
        half = torch.autocast(device, dtype=dtype)
    if not train:

        def evaluate() -> Tensor:
            with torch.inference_mode(), half:
                return torch.as_tensor(model(images))

        return evaluate
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with half:
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def memory_of(case: Case, side: str, bfloat16: bool, train: bool) -> int | None:
    """Peak extra bytes of the second step in this process; the first makes gradients and optimizer state."""
    torch.manual_seed(0)
    call = stepper(build(case, side), case, torch.bfloat16 if bfloat16 else torch.float32, train)
    return peak_extra(call, first=call)


def run_model_suite(
    cases: tuple[Case, ...] = CASES,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    rounds: int = 7,
    seconds: float = 60.0,
    memory: bool = True,
    depths: tuple[int, ...] = DEPTHS,
) -> dict[str, Any]:
    """Time evaluation and training steps of whole networks, all sides in turn, and the growth of cost with depth.

    Args:
        cases: shapes and batches.
        dtypes: float32, bfloat16 (autocast).
        rounds: counted rounds a case.
        seconds: stop counting after so long a case (at least three rounds).
        memory: also measure peak memory, each side in a process of its own.
        depths: numbers of blocks for the growth with depth, at the first case.
    """
    rows = []
    for case in cases:
        for name in dtypes:
            for train in (False, True):
                rows.append(measure_case(case, name, train, rounds, seconds, memory))
    growth = (
        {side: growth_of(side, cases[0], depths, memory) for side in (PLAIN, "deepvit")}
        if len(depths) > 1
        else {}
    )
    return {"suite": "model", "floor": PLAIN, **machine(), "rows": rows, "growth_with_depth": growth}


def growth_of(side: str, case: Case, depths: tuple[int, ...], memory: bool) -> dict[str, Any]:
    """Seconds and peak bytes of a float32 training step over the number of blocks, with fitted exponents."""
    times, peaks = [], []
    for depth in depths:
        deep = replace(case, depth=depth)
        call = stepper(build(deep, side), deep, torch.float32, True)
        times.append(against(in_turn({side: call}, 3), side)[side]["median_s"])
        if memory:
            peaks.append(isolated(memory_of, deep, side, False, True))
    found: dict[str, Any] = {
        "depths": list(depths),
        "train_step_s": times,
        "exponent": exponent(list(depths), times),
    }
    if memory and None not in peaks:
        found |= {"peak_extra_bytes": peaks, "memory_exponent": exponent(list(depths), peaks)}
    return found


def measure_case(
    case: Case, dtype: str, train: bool, rounds: int, seconds: float, memory: bool
) -> dict[str, Any]:
    """One row: every side's time in turn, and its memory."""
    calls = {}
    for side in case.sides:
        torch.manual_seed(0)
        calls[side] = stepper(build(case, side), case, getattr(torch, dtype), train)
    sides: dict[str, Any] = dict(against(in_turn(calls, rounds, seconds=seconds), PLAIN))
    calls.clear()
    result: dict[str, Any] = {
        "case": str(case), "tokens": case.tokens, "dtype": dtype, "mode": "train" if train else "eval", "sides": sides,
    }  # fmt: skip
    if memory:
        used = {side: isolated(memory_of, case, side, dtype == "bfloat16", train) for side in case.sides}
        for side, value in used.items():
            sides[side]["peak_extra_bytes"] = value
            sides[side]["memory_ratio"] = value / used[PLAIN] if value and used[PLAIN] else None
    return result
