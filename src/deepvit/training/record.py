"""What is said and kept of a run: what it begins with, and its record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deepvit.data import Loaders
from deepvit.provenance import command, hardware, versions
from deepvit.runs.card import ModelCard
from deepvit.terminal import say
from deepvit.training.callbacks import RunLog
from deepvit.training.config import TrainConfig
from deepvit.training.trainee import Trainee


def announce(
    config: TrainConfig,
    out: Path,
    model: torch.nn.Module,
    card: ModelCard,
    loaders: Loaders,
    trainer: Any,
) -> None:
    """Say what is about to be trained: sizes chosen for the user, and what they should know of their data."""
    if not (config.run.progress and trainer.is_global_zero):
        return
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    chosen = {
        k: v for k, v in card.model_args.items() if k not in config.model.args and not isinstance(v, bool)
    }
    text = (
        f"{card.arch} ({parameters:.2f} M parameters) on {loaders.data.spec}: {len(loaders.train_set):,} training and "
        f"{len(loaders.val_set):,} validation images of {card.input.width}×{card.input.height}, {card.problem.told_facts()}"
    )
    console = Console(stderr=True)
    console.print("\n".join([text, *loaders.account()]), highlight=False, markup=False)
    if chosen:  # as it would be typed, so on one line
        say("chosen for these images: " + " ".join(f"--model.{k} {v}" for k, v in chosen.items()), console)
    say(f"run folder: {out}", console)


def record(
    config: TrainConfig, module: Trainee, card: ModelCard, log: RunLog, seconds: float, unreadable: list[str]
) -> dict[str, Any]:
    """The record of a run: what was asked, on what it ran, what the deployed weights reach."""
    rows, problem = log.rows, module.problem
    times = sorted(float(row["seconds"]) for row in rows)
    watched = problem.column()
    values = [float(row[f"val/{watched.key}"]) for row in rows]
    best = max(values) if watched.better == "higher" else min(values)
    # The weights of the epoch first to be best are those that BestWeights kept.
    deployed = rows[values.index(best)] if config.result.keep == "best" else rows[-1]
    result = {
        **{name: float(deployed[name]) for c in problem.columns if (name := f"val/{c.key}") in deployed},
        "epoch": int(deployed["epoch"]),
        f"best/{watched.key}": best,
        "best_epoch": int(rows[values.index(best)]["epoch"]),
        f"last/{watched.key}": values[-1],
        "seconds_per_epoch": times[len(times) // 2],
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "epochs": len(rows),
        "steps": int(rows[-1]["step"]),
    }
    return {
        "format": "deepvit-run/1",
        "command": command(),
        "task": config.task,
        "arch": card.arch,
        "model_args": card.model_args,
        "data": config.data.spec,
        "seed": config.optim.seed,
        "versions": versions(),
        "hardware": hardware(),
        "wall_seconds": seconds,
        "unreadable": unreadable,
        "in_force": log.in_force,
        "result": result,
    }
