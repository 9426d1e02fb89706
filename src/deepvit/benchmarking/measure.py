"""Measuring: sides in turn (A B A B), medians and spread, peak memory, and what it ran on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from deepvit.errors import UserError
from deepvit.ops import lanes
from deepvit.provenance import hardware, versions

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
MMAP_THRESHOLD = -3
"""glibc's number for this setting of mallopt."""


def in_turn(
    sides: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Time every side once a round, in turn, so that a machine whose speed drifts slows all of them alike.

    Args:
        sides: name → what is timed; on a GPU it is waited for.
        rounds: counted rounds.
        warmup: rounds that are not counted, first.
        seconds: stop counting new rounds after so long (0: never); at least three are counted.

    Returns:
        name → seconds of each round; round i of all sides belongs together.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.perf_counter()
    for number in range(-warmup, rounds):
        if seconds and number >= 3 and time.perf_counter() - started > seconds:
            break
        for name, call in sides.items():
            wait()
            before = time.perf_counter()
            call()
            wait()
            if number >= 0:
                times[name].append(time.perf_counter() - before)
    return times


def wait() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def against(times: Mapping[str, list[float]], floor: str) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum in seconds of each side, and its ratio to ``floor``.

    The ratio is the median of the ratios round by round, which drift does not touch; ``ratio_low`` and
    ``ratio_high`` are its quartiles.
    """
    result = {}
    for name, values in times.items():
        ratios = sorted(a / b for a, b in zip(values, times[floor], strict=True))
        result[name] = {
            "median_s": median(values),
            "min_s": min(values),
            "max_s": max(values),
            "rounds": len(values),
            "ratio": median(ratios),
            "ratio_low": ratios[len(ratios) // 4],
            "ratio_high": ratios[(3 * len(ratios)) // 4],
        }
    return result


def peak_extra(call: Callable[[], Any], first: Callable[[], Any] | None = None) -> int | None:
    """Most bytes that ``call`` needed beyond what was held before it, or None where it cannot be measured.

    On a GPU by torch's allocator; else by the kernel's high-water mark of resident memory (Linux), which is
    reset first. ``first`` runs before, to make what later calls find. What it left is given back: the operator's
    lanes and what the C library keeps of freed memory, in which the call would otherwise hide. From ``first`` on,
    tensors from 128 KiB on have pages of their own: holes in the C library's heap made up to a tenth of a training
    step's mark, more or less from run to run. See also ``isolated``.
    """
    _own_pages_from(128 * 1024)
    try:
        if first is not None:
            first()
        return _peak_extra(call)
    finally:
        _own_pages_from(32 * 1024**2)  # the most that the C library comes to by itself


def _peak_extra(call: Callable[[], Any]) -> int | None:
    gc.collect()
    lanes.release()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    if not os.access(CLEAR, os.W_OK):
        return None
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # resets the high-water mark to what is resident now
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def _own_pages_from(size: int) -> None:
    """Let the C library take allocations of ``size`` bytes and more from the system each."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, size)


def resident(field: str) -> int:
    """A field of the kernel's account of this process in bytes: ``VmRSS`` (now) or ``VmHWM`` (at most)."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


def isolated(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a module-level function in a fresh process, whose memory nothing else has touched.

    Raises:
        UserError: the process was ended from outside, as the system does where memory runs out.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(call, *arguments).result()
        except BrokenProcessPool:
            raise UserError(
                "the process that measures memory was ended from outside; as a rule memory ran out: "
                "take fewer images or less depth, or end what else is running"
            ) from None


def exponent(sizes: list[int], costs: list[float]) -> float | None:
    """Slope of log cost over log size by least squares: 1 is linear growth, 2 quadratic; None for one size."""
    if len(sizes) < 2 or min(costs) <= 0:
        return None
    x = torch.tensor(sizes, dtype=torch.float64).log()
    y = torch.tensor(costs, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def machine() -> dict[str, Any]:
    """Hardware and versions, for the head of a result."""
    found = {"hardware": hardware(), "versions": versions()}
    if torch.cuda.is_available():
        found["versions"]["cuda"] = str(torch.version.cuda)
    return found
