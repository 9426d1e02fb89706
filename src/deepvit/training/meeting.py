"""How the processes of a run start, meet, fail and end.

They are started by us (``--devices 2``, ``--devices cpu:2``), by torchrun or by srun; all three end in one ``Team``, which
Lightning is told about (``strategy.py``). Whether a launcher is there is read from variables that only it sets, so that
``SLURM_NTASKS=2 deepvit train`` inside an allocation is a plain run in one process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from deepvit.errors import UserError
from deepvit.runs.place import place
from deepvit.training.devices import Devices, agree, alone_or_first, device_of, share_cores, srun_meeting
from deepvit.training.leaving import end_in_order
from deepvit.training.processes import Team

_LONG = timedelta(hours=2)
"""How long processes wait for one another: the first may be decoding a data set."""


@contextlib.contextmanager
def team(devices: str, nodes: int | None, start: Callable[[str], Any]) -> Iterator[Team]:
    """Be one of the processes of a run inside; ``start`` starts another one, given its place.

    Raises:
        UserError: ``devices`` or ``nodes`` that are not here or contradict the launcher; another process has failed.
    """
    wanted, here = Devices.read(devices), place()
    if here is None:
        wanted.check(devices)
        here = alone_or_first(wanted, nodes)
    elif here.by != "deepvit":
        agree(wanted, nodes, here, devices)
    if here.world == 1:
        yield Team(here, device_of(wanted, here))
        return
    if here.by == "srun":
        here = srun_meeting(here)
    one = Team(here, device_of(wanted, here))
    share_cores(here)
    with meeting(one, start):
        yield one


@contextlib.contextmanager
def meeting(one: Team, start: Callable[[str], Any]) -> Iterator[None]:
    """Connect the processes inside, those that are ours to start included, and end them with this one."""
    here = one.place
    children: list[Any] = one._children
    try:
        store = None
        if not here.by and here.rank == 0:
            store = TCPStore(
                here.address, here.port, here.world, is_master=True, timeout=_LONG, wait_for_workers=False
            )
        port = store.port if store is not None else here.port
        if not here.by:
            for local in range(1, here.local_world):
                numbers = f"{here.rank + local}/{here.world}/{local}/{here.local_world}"
                children.append(start(f"{numbers}/{here.address}/{port}"))
        connect(one, store, port)
        watch(children)
        yield
        for child in children:
            child.wait()
    except RuntimeError as error:
        if not lost(error):
            raise
        codes = ended(children)
        what = (
            f"process {codes[0][0]} has ended with code {codes[0][1]}"
            if codes
            else "another process has ended"
        )
        raise UserError(f"{what}: see its message (this was process {here.rank} of {here.world})") from None
    except (KeyboardInterrupt, SystemExit):
        _wait(children, 60)  # they save together, and end by the same signal
        raise
    finally:
        for child in children:
            child.stdin.close()  # by which a child knows that this process is done
        _wait(children, 10)
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


def connect(one: Team, store: Any, port: int) -> None:
    """Make the process group of all."""
    here, on_gpu = one.place, one.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(one.device)
    if store is None:
        # torchrun's own agent keeps the meeting place open on every machine.
        master = here.rank == 0 and here.by != "torchrun"
        store = TCPStore(here.address, port, here.world, is_master=master, timeout=_LONG)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=PrefixStore("deepvit", store), rank=here.rank, world_size=here.world, timeout=_LONG,
    )  # fmt: skip
    end_in_order()


def watch(children: list[Any]) -> None:
    """End this process when a child has died and it does not notice by itself: a collective may wait for ever."""

    def look() -> None:
        while any(child.poll() is None for child in children):
            if codes := ended(children):
                time.sleep(60)
                if any(not child.stdin.closed for child in children):
                    print(
                        f"deepvit train: process {codes[0][0]} has ended with code {codes[0][1]}",
                        file=sys.stderr,
                    )
                    os._exit(2)
                return
            time.sleep(0.5)

    if children:
        threading.Thread(target=look, daemon=True).start()


def ended(children: list[Any]) -> list[tuple[int, int]]:
    """Number (on this machine) and code of the children that have failed."""
    return [(i + 1, child.poll()) for i, child in enumerate(children) if child.poll() not in (None, 0)]


def lost(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone."""
    text = str(error).lower()
    signs = (
        "connection closed by peer",
        "connection reset",
        "broken pipe",
        "connection refused",
        "nccl",
        "gloo",
    )
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def _wait(children: list[Any], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(child.poll() is None for child in children):
        time.sleep(0.05)


def end_with_parent(pipe: int) -> threading.Event:
    """End this process when ``pipe``, which its parent holds open, is closed, or the parent is gone.

    The event is set a second before.
    """
    closed, parent = threading.Event(), os.getppid()

    def look() -> None:
        with contextlib.suppress(OSError):
            # Processes that the parent has forked since hold the pipe too: that it is gone is seen by itself.
            while os.getppid() == parent:
                if select.select([pipe], [], [], 1.0)[0] and not os.read(pipe, 1):
                    break
        closed.set()
        time.sleep(1)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
    return closed
