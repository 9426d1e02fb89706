"""Which devices a run takes: what ``--devices`` and ``--nodes`` ask for, what is here, and what a launcher says."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from deepvit.errors import UserError
from deepvit.runs.place import Place


@dataclass(frozen=True)
class Devices:
    """What ``--devices`` asks for on one machine: the kind ("auto", "cpu" or "gpu"), how many, and which accelerators."""

    kind: str
    count: int = 1
    indices: tuple[int, ...] = ()

    @classmethod
    def read(cls, text: str) -> Devices:
        """``auto``, ``cpu``, ``cpu:2``, a number of accelerators, or their indices as ``0,1``.

        One accelerator may also have the name that commands with one device give it, ``cuda`` or ``cuda:1``.

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
        if text == "cuda" or (kind == "cuda" and number.isdecimal()):
            return cls("gpu", 1, (0 if text == "cuda" else int(number),))
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


def srun_meeting(here: Place) -> Place:
    """A process of a SLURM step with where all meet: on its first machine, at a port that job and step give.

    Lightning's ``SLURMEnvironment`` itself refuses ``srun -n 2``; only its reading of node lists is used.
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
    one = here.world == here.local_world
    address = "127.0.0.1" if one else SLURMEnvironment.resolve_root_node_address(nodes)
    job, step = (os.environ.get(name, "0") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    number = int(job if job.isdecimal() else 0) * 7 + int(step if step.isdecimal() else 0)
    port = int(os.environ.get("MASTER_PORT") or 15_000 + number % 15_000)
    return replace(here, address=os.environ.get("MASTER_ADDR") or address, port=port)


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
