"""Which process of several this is, as whoever started it has said in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

CHILD = "DEEPVIT_PROCESS"
"""Set in the processes that we start: rank/world/local rank/local world/address/port."""


@dataclass(frozen=True)
class Place:
    """Which process this is: its rank of ``world``, the same on its machine, and where all meet."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    by: str = ""


def place(env: Mapping[str, str] = os.environ) -> Place | None:
    """The place that a launcher has given this process; None for a process that was started by itself."""
    if CHILD in env:
        *numbers, address, port = env[CHILD].split("/")
        rank, world, local_rank, local_world = map(int, numbers)
        return Place(rank, world, local_rank, local_world, address, int(port), "deepvit")
    if all(
        name in env for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    ):
        local = int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]))
        return Place(
            int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), local,
            env.get("MASTER_ADDR", "127.0.0.1"), int(env["MASTER_PORT"]), "torchrun",
        )  # fmt: skip
    # SLURM_NTASKS is set in the whole allocation; the numbers of a step are set by srun alone.
    if int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1 and "SLURM_PROCID" in env and "SLURM_LOCALID" in env:
        world = int(env["SLURM_STEP_NUM_TASKS"])
        nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
        return Place(
            int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), -(-world // nodes), by="srun"
        )
    return None
