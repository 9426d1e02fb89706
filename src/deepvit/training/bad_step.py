"""A step whose numbers were not finite, as it happens: what is kept of it in ``nonfinite/`` of the run folder."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from deepvit.files import atomic_path, write_json
from deepvit.ops.collective import alone
from deepvit.training.guards import first_bad_gradient, first_nonfinite
from deepvit.training.sharding import put_together, whole_state

FOLDER = "nonfinite"


def seed_step(seed: int, epoch: int, batch: int, rank: int) -> Callable[[], None] | None:
    """Set every generator that a training step draws from, as a function of where training stands.

    What is drawn for mixing is the same in all processes, whose batches together are one; from there on each draws its own.

    Returns:
        what a process but the first calls once the batch is mixed (``Objective``); None in the first.
    """
    _seed(seed, epoch, batch, 0)
    return functools.partial(_seed, seed, epoch, batch, rank) if rank else None


def _seed(seed: int, epoch: int, batch: int, rank: int) -> None:
    state = int(np.random.SeedSequence([seed, epoch, batch, rank]).generate_state(1)[0])
    torch.manual_seed(state)
    random.seed(state)
    np.random.seed(state)


def keep_bad(module: Any, kind: str, text: str, terms: dict[str, float]) -> None:
    """Write what is needed to see a bad step again: where it is, its terms, the block where it began, the weights before it.

    Only the first of a run is kept; other processes than the first write beside it under their number.
    """
    if module.out is None:
        return
    folder = module.out / FOLDER / (f"process-{module.global_rank}" if module.global_rank else "")
    if (folder / "record.json").exists():
        return
    began = first_bad_gradient(module.model) if kind == "gradient" else None
    images, targets = module.batch if module.batch is not None else (None, None)
    if images is not None:
        with put_together(module.model), kept_state(module.model), alone():  # the others may not come here
            batch = module.batch_numbers[-1] if module.batch_numbers else 0
            own = seed_step(module.config.optim.seed, module.current_epoch, batch, module.global_rank)
            forward = first_nonfinite(
                module.model, lambda: module.objective(module.model, images, targets, own)
            )
        began = forward or began
    with atomic_path(folder / "weights.safetensors") as temporary:
        save_file(weights_of(module), temporary)
    write_json(
        folder / "record.json",
        {
            "format": "deepvit-nonfinite/1", "kind": kind, "text": text, "epoch": module.current_epoch,
            "step": module.global_step, "batches": module.batch_numbers, "rank": module.global_rank,
            "world": module.trainer.world_size, "began_in": began,
            "terms": {name: repr(value) for name, value in terms.items()},
        },
    )  # fmt: skip


def weights_of(module: Any) -> dict[str, torch.Tensor]:
    """The network's state and that of the losses' own heads, by prefixed name; of a sharded one all processes take part."""
    parts: dict[str, nn.Module] = {"model": module.model, "objective": module.objective}
    return {
        f"{part}.{name}": value.detach().cpu().contiguous().clone()
        for part, one in parts.items()
        for name, value in whole_state(one.state_dict()).items()
    }


@contextlib.contextmanager
def kept_state(model: nn.Module) -> Any:
    """Buffers (running statistics) are as before afterwards."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(before[name])
