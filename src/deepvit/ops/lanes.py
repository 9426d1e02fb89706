"""Shares of a sweep side by side: one thread a share, each computing alone, so that its maps stay in its cache.

PyTorch splits every operation over the processor's threads. A sweep's operations hand maps to one another, split
by heads here and by entries there, so that half of every buffer would cross from core to core, with a barrier
after each step; where neighbours press on the caches that costs up to twice the time. A lane does all steps of
its own blocks instead. Lanes are Python threads: PyTorch lets go of the interpreter's lock while it computes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

Share = TypeVar("Share")
Result = TypeVar("Result")

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_pool_lock = threading.Lock()
_own = threading.local()


def count(device: str) -> int:
    """Lanes that may be used: as many as PyTorch has threads here.

    One on an accelerator; off Linux, where nobody measured them beside another OpenMP; inside a lane; and where a
    dispatch mode counts or records operations, since a mode sees its own thread only.
    """
    if device != "cpu" or sys.platform != "linux" or getattr(_own, "lane", False):
        return 1
    return 1 if torch._C._len_torch_dispatch_stack() else torch.get_num_threads()


def run(work: Callable[[Share], Result], shares: Sequence[Share]) -> list[Result]:
    """``work`` of every share, without autograd, in the order of the shares; the first error is raised.

    One share runs in the calling thread, with all of PyTorch's threads. Several run in lanes of one thread each.
    """
    if len(shares) == 1:
        with torch.no_grad():
            return [work(shares[0])]
    inference = torch.is_inference_mode_enabled()

    def alone(share: Share) -> Result:
        with torch.inference_mode(inference), torch.no_grad():
            return work(share)

    with _pool_lock:
        pool = _lanes(len(shares))
        futures = [pool.submit(alone, share) for share in shares]
    wait(futures)  # all of them, also when one failed: they write to the caller's tensors
    return [future.result() for future in futures]


def scratch(use: str, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised flat memory, on a processor the same for each call of this thread with this ``use``.

    A fresh megabyte costs a page fault for every 4 KiB, which is a tenth of a sweep's time.
    """
    if device.type != "cpu":
        return torch.empty(numel, dtype=dtype, device=device)
    held: dict[tuple[str, torch.dtype], Tensor] = _own.__dict__.setdefault("held", {})
    found = held.get((use, dtype))
    if found is None or found.numel() < numel:
        with torch.inference_mode(False):  # an inference tensor could not be written to elsewhere
            found = held[use, dtype] = torch.empty(numel, dtype=dtype, device=device)
    return found[:numel]


def release() -> None:
    """End the lanes and free their memory and the calling thread's (some MiB each); the next call makes them anew."""
    global _pool, _pool_size
    with _pool_lock:
        if _pool is not None:
            _pool.shutdown()
        _pool, _pool_size = None, 0
    _own.__dict__.pop("held", None)


def _lanes(size: int) -> ThreadPoolExecutor:
    """The process's pool, with at least ``size`` threads that are all set up."""
    global _pool, _pool_size
    if _pool is None or _pool_size < size:
        threads = torch.get_num_threads()
        ready = threading.Barrier(size + 1)

        def settle() -> None:
            _own.lane = True
            # A helper that sleeps. libgomp's threads spin for milliseconds after each of PyTorch's operations, here
            # in the lanes' way, unless it manages more of them than there are processors.
            torch.set_num_threads(2)
            torch.ones(1 << 18)
            # This thread's own setting, and the default for threads that begin later: put right below.
            torch.set_num_threads(1)
            ready.wait()

        pool = ThreadPoolExecutor(size, thread_name_prefix="deepvit-lane", initializer=settle)
        for _ in range(size):
            pool.submit(int)
        ready.wait()
        torch.set_num_threads(threads)
        if _pool is not None:
            _pool.shutdown(wait=False)
        _pool, _pool_size = pool, size
    return _pool


def _forget() -> None:
    """A forked child has none of its parent's threads, and may have got the lock while it was held."""
    global _pool, _pool_size, _pool_lock, _own
    _pool, _pool_size, _pool_lock, _own = None, 0, threading.Lock(), threading.local()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget)
