"""What is said and kept of a run: what it begins with, its record, and the report on its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deepvit.data import Loaders
from deepvit.errors import UserError
from deepvit.provenance import command, hardware, versions
from deepvit.runs.card import ModelCard
from deepvit.terminal import say
from deepvit.training.callbacks import RunLog
from deepvit.training.config import TrainConfig
from deepvit.training.preparing import Prepared, settings_of
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


def diagnose_run(
    config: TrainConfig,
    out: Path,
    network: torch.nn.Module,
    parts: Prepared,
    info: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Write ``collapse.json`` and ``report.html`` of the deployed weights, with what the task adds to the latter.

    A network without attention over tokens has no such report: the reason is printed and training counts as done.
    """
    if not config.result.diagnose_images:
        return
    from deepvit.report import diagnose
    from deepvit.runs.subjects import score_of

    card, loaders = parts.card, parts.loaders
    try:
        report = diagnose(
            network,
            loaders.val_loader_for(config.result.diagnose_images),
            out=out,
            images=config.result.diagnose_images,
            name=out.name,
            class_names=card.problem.labels,
            normalize=(card.input.mean, card.input.std),
            score=score_of(card.problem),
            progress=False,
            foremost=card.problem.foremost,
            sections=card.problem.report_parts(network, parts.data, card.input, settings_of(config)),
            provenance={
                "data": config.data.spec,
                "train": {"options": ["--config", str(out / "config.yaml")], "out": str(out)},
                "run": described(config, card, loaders, info, rows),
            },
        )
        info["verdict"] = report.verdict.headline
    except UserError as error:
        say(f"no collapse report: {error}", Console(stderr=True))


def described(
    config: TrainConfig, card: ModelCard, loaders: Loaders, info: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a run is, in the form of ``deepvit.report.run``, for the header of its report."""
    result = info["result"]
    columns = [column for column in card.problem.columns if f"val/{column.key}" in result]

    def curve(name: str, key: str, unit: str = "") -> dict[str, Any]:
        points = [[int(row["epoch"]), float(row[key])] for row in rows if row.get(key) not in (None, "")]
        return {"name": name, "unit": unit, "x": "epoch", "points": points}

    return {
        "model": card.arch,
        "arguments": card.model_args,
        "cures": card.cures,
        "losses": config.loss.weights,
        "data": config.data.spec,
        "images": len(loaders.train_set),
        "epochs": config.optim.epochs,
        "batch": config.optim.batch_size * config.optim.accumulate,
        "seed": config.optim.seed,
        "weights": card.weights,
        "results": [
            {"name": c.title, "value": round(result[f"val/{c.key}"], c.digits), "unit": c.unit}
            for c in columns
        ],
        "curves": [
            curve("training loss", "train/loss"),
            *(curve(c.title, f"val/{c.key}", c.unit) for c in columns),
        ],
    }
