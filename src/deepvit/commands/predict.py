"""``deepvit predict``: what a run says of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deepvit import tasks
from deepvit.commands.command import Command
from deepvit.data.layout import list_folder
from deepvit.errors import UserError
from deepvit.files import write_json
from deepvit.options import Option, build, options_of
from deepvit.parsing import checked
from deepvit.runs import load_deployed, pick_device, read_card


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
        out: where the result is kept: a JSON file of a classifier's.
        **options: those that the run's task has, as ``topk`` of a classifier.

    Returns:
        for each image its path and what the task says: of a classifier ``labels``, ``[{"label", "probability"}, ...]``,
        most probable first.

    Raises:
        UserError: no finished run there, a file that is missing or no image, an option that the task does not have.
    """
    model, card = load_deployed(run, pick_device(device))
    problem = card.problem
    kind = problem.predict_options
    own = build(kind, checked(options, options_of(kind), f"{card.task} prediction"))
    files = [file for name in images for file in image_files(name)]
    if not files:
        raise UserError(f"no image is in {', '.join(images)}")
    where = None if out is None else Path(out)
    with torch.inference_mode():
        result = Predictions(problem.predict(model, files, card.input, own, where))
    result.problem = problem
    if where is not None and not where.is_dir():
        write_json(where, list(result))
    return result


def image_files(name: str) -> list[Path]:
    """An image file as it is, or the images in a folder."""
    path = Path(name)
    return [path / inner for inner in list_folder(path).paths] if path.is_dir() else [path]


def more(words: list[str]) -> Sequence[Option]:
    """The options of the task of the run that the words name first."""
    first = words[0] if words and not words[0].startswith("-") else None
    named = first is not None and (Path(first) / "model.json").exists()
    return options_of(tasks.find(read_card(str(first)).task if named else tasks.DEFAULT).predict_options)


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
)
