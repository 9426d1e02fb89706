"""``deepvit predict``: what a run says of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deepvit import tasks
from deepvit.commands.command import Command
from deepvit.commands.evaluate import task_of
from deepvit.data.layout import list_folder
from deepvit.errors import UserError
from deepvit.files import write_json
from deepvit.options import Option, build, options_of
from deepvit.parsing import checked
from deepvit.runs import load_deployed, pick_device


class Predictions(list[dict[str, Any]]):
    """One result an image, as JSON, and the problem that can tell them in words."""

    problem: tasks.Task


def predict(
    run: str, images: list[str], device: str = "auto", out: str | None = None, **options: Any
) -> Predictions:
    """Ask the deployed model of a run about photographs.

    Args:
        run: run folder.
        images: image files, or folders of them.
        device: auto, cpu, cuda, cuda:1, mps.
        out: where the result is kept: a JSON file, or a folder, in which predictions.json and the task's own files (masks
            of a segmentation) are written.
        **options: those that the run's task has, as ``topk`` of a classifier.

    Returns:
        for each image its path and what the task says: of a classifier ``labels``, ``[{"label", "probability"}, ...]``,
        most probable first.

    Raises:
        UserError: no finished run there, a file that is missing or no image, an option that the task does not have.
    """
    model, card = load_deployed(run, pick_device(device))
    problem = card.problem
    own, asked = (
        build(kind, checked(options, options_for(type(problem)), f"{card.task} prediction"))
        for kind in (problem.predict_options, problem.infer_options)
    )
    files = [file for name in images for file in image_files(name)]
    if not files:
        raise UserError(f"no image is in {', '.join(images)}")
    where = None if out is None else Path(out)
    folder = where is not None and where.suffix != ".json"
    with torch.inference_mode():
        result = Predictions(problem.predict(model, files, card.input, own, asked, where))
    result.problem = problem
    if where is not None:
        write_json(where / "predictions.json" if folder else where, list(result))
    return result


def image_files(name: str) -> list[Path]:
    """An image file as it is, or the images in a folder."""
    path = Path(name)
    return [path / inner for inner in list_folder(path).paths] if path.is_dir() else [path]


def more(words: list[str]) -> Sequence[Option]:
    """The options of the task of the run that the words name first."""
    return options_for(task_of(words))


def options_for(task: type[tasks.Task]) -> list[Option]:
    """What a task takes when it predicts: its own options, and how its network is asked."""
    return [*options_of(task.predict_options), *options_of(task.infer_options)]


def show(result: Predictions) -> None:
    """Print one line an image."""
    for row in result:
        print(f"{row['image']}: {result.problem.told(row)}")


COMMAND = Command(
    predict,
    show,
    more,
    examples=(
        "deepvit predict runs/a photo.jpg",
        "deepvit predict runs/a PHOTOS --out labels.json",
    ),
    of_task=options_for,
)
