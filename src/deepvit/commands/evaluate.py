"""``deepvit evaluate``: the figures of a run on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from deepvit import tasks
from deepvit.commands.command import Command
from deepvit.data import AugmentConfig, DataOptions
from deepvit.errors import UserError
from deepvit.files import write_json
from deepvit.options import build
from deepvit.parsing import read_yaml
from deepvit.runs import load_deployed, pick_device
from deepvit.tasks.task import Settings


def evaluate(
    run: str,
    data: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    workers: int | None = None,
    max_val_images: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Measure the deployed model of a run on the validation images of a data set.

    Args:
        run: run folder.
        data: data set (as for train); by default the one that the run was trained on.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, mps.
        workers: processes that load large images.
        max_val_images: at most this many images, evenly spaced; by default all, and of the run's own data as many as it
            validated on.
        out: a JSON file for the result.

    Returns:
        the figures of the run's task (``top1``, ``top5`` and ``loss`` of a classifier, for example), ``images``, and
        what the task tells by class.

    Raises:
        UserError: no finished run there, or targets that the run does not know.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    if workers is not None and workers < 0:
        raise UserError(f"workers={workers} must be at least 0")
    if max_val_images is not None and max_val_images < 1:
        raise UserError(f"max_val_images={max_val_images} must be at least 1")
    model, card = load_deployed(run, pick_device(device))
    problem, config = card.problem, config_of(run)
    if data is None:
        limit = config.get("max_val_images") if max_val_images is None else max_val_images
        spec, source = str(config["data"]), build(DataOptions, config.get("data_args") or {})
    else:
        limit, spec, source = max_val_images, data, DataOptions()
    own = build(problem.options, config)
    settings = Settings(
        batch_size, AugmentConfig(), options=own, workers=workers, max_val_images=limit, progress=False
    )
    opened = problem.open(spec, source, own)
    meter: Any = problem.meter()
    images, where = 0, next(model.parameters()).device
    with torch.inference_mode():
        for batch, targets in problem.validation(opened, card.input, settings):
            output = problem.infer(model, batch.to(where, non_blocking=True))
            meter.update(output.cpu() if isinstance(output, torch.Tensor) else output, targets)
            images += len(batch)
    figures = {key: float(value) for key, value in meter.compute().items()}
    result = {
        "run": str(run), "data": spec, "task": card.task, "images": images, **figures, **problem.detail(meter, opened),
    }  # fmt: skip
    if out is not None:
        write_json(out, result)
    return result


def config_of(run: str | Path) -> dict[str, Any]:
    """The options of a run as its ``config.yaml`` has them.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(run) / "config.yaml"
    if not path.exists():
        raise UserError(f"{run} does not say on what it was trained (no config.yaml): give --data")
    return {"data": "digits", **read_yaml(path, "training options")}


def show(result: dict[str, Any]) -> None:
    """Print an evaluation: the figures, and what the task tells more."""
    kind = tasks.find(result["task"])
    figures = ", ".join(column.told(result[column.key]) for column in kind.columns)
    Console().print(
        f"{result['run']} on {result['data']}: {figures}, {result['images']:,} images",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
    kind.show_detail(result)


COMMAND = Command(evaluate, show)
