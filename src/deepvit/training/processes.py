"""Several processes: who they are, how they start and meet, and how the first decides for all.

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
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from deepvit.errors import UserError
from deepvit.runs.place import Place, place

T = TypeVar("T")
_LONG = timedelta(hours=2)
"""How long processes wait for one another: the first may be decoding a data set."""


@dataclass(frozen=True)
class Devices:
    """What ``--devices`` asks for on one machine: the kind ("auto", "cpu" or "gpu"), how many, and which accelerators."""

    kind: str
    count: int = 1
    indices: tuple[int, ...] = ()

    @classmethod
    def read(cls, text: str) -> Devices:
        """``auto``, ``cpu``, ``cpu:2``, a number of accelerators, or their indices as ``0,1``.

        Raises:
            UserError: anything else.
        """
        if text == "auto":
            return cls("auto")
        if text == "cpu":
            return cls("cpu")
        kind, _, number = text.rpartition(":")
        if kind == "cpu" and number.isdecimal() and int(number) > 0:
            return cls("cpu", int(number))
        parts = [part.strip() for part in text.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise UserError(
                f"devices={text!r} must be auto, cpu, cpu:N (processes), a number of accelerators, or indices as 0,1"
            )
        if len(parts) == 1:
            if not int(text):
                raise UserError("devices=0 leaves nothing to train on: give auto, cpu or a number")
            return cls("gpu", int(text), tuple(range(int(text))))
        indices = tuple(map(int, parts))
        if len(set(indices)) < len(indices):
            raise UserError(f"devices={text!r} names an accelerator twice")
        return cls("gpu", len(indices), indices)

    def check(self, text: str) -> None:
        """Raise UserError where these accelerators are not here."""
        if self.kind != "gpu":
            return
        if not torch.cuda.is_available():
            raise UserError(
                f"devices={text!r} asks for accelerators, and torch sees none: use --devices cpu or auto"
            )
        if max(self.indices) >= torch.cuda.device_count():
            raise UserError(f"devices={text!r}: torch sees {torch.cuda.device_count()} accelerators here")


@dataclass
class Team:
    """The processes of a run; with one, everything here does nothing.

    Attributes:
        place: which of them this is.
        device: "auto" (Lightning chooses one), "cpu" or "cuda:INDEX".
    """

    place: Place
    device: str
    _children: list[Any] = field(default_factory=list)

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.place.rank

    @property
    def world(self) -> int:
        """How many there are."""
        return self.place.world

    def decide(self, function: Callable[[], T]) -> T:
        """What the function gives in the first process, in all of them; so does a ``UserError`` of it."""
        if self.world == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except UserError as error:
                answer[1] = error
        dist.broadcast_object_list(answer, 0)
        if answer[1] is not None:
            raise answer[1]
        value: T = answer[0]
        return value

    def first_then_others(self, function: Callable[[], T]) -> T:
        """The function's result in every process, the first of each machine before the others: it may download or unpack.

        A ``UserError`` of any of them is one of all.
        """
        if self.world == 1:
            return function()
        mine: tuple[T] | None = None
        for turn in (True, False):
            error: UserError | None = None
            if (self.place.local_rank == 0) == turn:
                try:
                    mine = (function(),)
                except UserError as raised:
                    error = raised
            errors: list[Any] = [None] * self.world
            dist.all_gather_object(errors, error)
            if found := [one for one in errors if one is not None]:
                raise found[0]
        assert mine is not None
        return mine[0]

    def total(self, count: int) -> int:
        """The sum of a number over all processes."""
        if self.world == 1:
            return count
        every = torch.tensor(count)
        dist.all_reduce(every)
        return int(every)


def largest(value: float, device: torch.device | str = "cpu") -> float:
    """The largest value of all processes; what it decides does then not differ between them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    most = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most)


def every_process(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scalars by name → [processes] by name, in the order of their ranks; one exchange for all of them."""
    if not values:
        return {}
    mine = torch.stack(list(values.values()))
    parts = [mine]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine)
    return dict(zip(values, torch.stack(parts, 1).unbind(0), strict=True))


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
        here = replace(here, **srun_meeting())
    one = Team(here, device_of(wanted, here))
    share_cores(here)
    with meeting(one, start):
        yield one


def srun_meeting() -> dict[str, Any]:
    """Where the processes of a SLURM step meet: on its first machine, at a port that its number gives."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    return {"address": slurm.main_address, "port": slurm.main_port}


def alone_or_first(wanted: Devices, nodes: int | None) -> Place:
    """The place of a process that no launcher has started: alone, or the first of its machine."""
    nodes = nodes or 1
    world = wanted.count * nodes
    if nodes == 1:
        return Place(world=world, local_world=world)
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    if missing := [name for name in names if not os.environ.get(name)]:
        raise UserError(
            f"--nodes {nodes} needs {', '.join(missing)} in the environment of every machine; or start the command by "
            "torchrun or srun, which set what is needed"
        )
    first = int(os.environ["NODE_RANK"]) * wanted.count
    return Place(first, world, 0, wanted.count, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), "")


def agree(wanted: Devices, nodes: int | None, here: Place, text: str) -> None:
    """Refuse what contradicts the launcher's numbers."""
    if wanted.kind == "gpu" and not torch.cuda.is_available():
        wanted.check(text)
    several = wanted.count > 1 or (wanted.kind == "gpu" and here.local_world > 1)
    if several and wanted.count != here.local_world:
        raise UserError(
            f"{here.by} has started {here.local_world} processes here and --devices {text} asks for {wanted.count}: "
            "leave it out"
        )
    if nodes is not None and nodes * here.local_world != here.world:
        raise UserError(
            f"{here.by} has started {here.world} processes, {here.local_world} here, and --nodes is {nodes}: leave it out"
        )


def device_of(wanted: Devices, here: Place) -> str:
    """What this process trains on."""
    if wanted.kind == "gpu":
        return f"cuda:{wanted.indices[here.local_rank]}"
    if wanted.kind == "cpu" or (here.world > 1 and not torch.cuda.is_available()):
        return "cpu"
    if here.world == 1:
        return "auto"
    # A scheduler may show each process its own accelerator only.
    seen = torch.cuda.device_count()
    if seen not in (1, here.local_world) and seen < here.local_world:
        raise UserError(f"{here.local_world} processes were started here, and torch sees {seen} accelerators")
    return f"cuda:{here.local_rank if seen > 1 else 0}"


def share_cores(here: Place) -> None:
    """A process of several takes its share of the cores, unless somebody has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // here.local_world))


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
