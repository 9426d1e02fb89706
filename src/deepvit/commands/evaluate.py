"""``deepvit evaluate``: the figures of a run on a data set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from rich.console import Console

from deepvit import tasks
from deepvit.commands.check_data import source_options
from deepvit.commands.command import Command
from deepvit.data import AugmentConfig
from deepvit.errors import UserError
from deepvit.files import write_json
from deepvit.options import Option, build, options_of
from deepvit.parsing import checked
from deepvit.runs import load_deployed, pick_device, read_card
from deepvit.runs.folder import open_stored, stored_options
from deepvit.runs.place import place
from deepvit.tasks.task import Settings

if TYPE_CHECKING:
    from deepvit.training.processes import Team


def evaluate(
    run: str,
    data: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    workers: int | None = None,
    max_val_images: int | None = None,
    out: str | None = None,
    data_args: dict[str, Any] | None = None,
    **options: Any,
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
        out: a JSON file for the result, or a folder for result.json; pictures that the task draws lie beside it.
        data_args: options of the data source by name, as for train (``--data.KEY`` on the command line); where the data is
            the run's own, those of the run hold unless given here.
        **options: those that the run's task has for asking its network.

    Returns:
        the figures of the run's task by the keys of its columns, ``images``, and
        what the task tells by class.

    Raises:
        UserError: no finished run there, targets that the run does not know, an option that its task does not have.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} must be at least 1")
    if workers is not None and workers < 0:
        raise UserError(f"workers={workers} must be at least 0")
    if max_val_images is not None and max_val_images < 1:
        raise UserError(f"max_val_images={max_val_images} must be at least 1")
    with processes(device) as team:
        where = pick_device(device) if team is None else torch.device(team.device)
        model, card = load_deployed(run, where)
        problem, config = card.problem, stored_options(run)
        own, asked = build(problem.options, config), asking(problem, options)
        spec, limit = data if data is not None else str(config["data"]), max_val_images

        def opening() -> Any:
            return open_stored(problem, config, data, data_args)

        opened = opening() if team is None else team.first_then_others(opening)
        if data is None and limit is None:
            limit = config.get("max_val_images")
        settings = Settings(
            batch_size, AugmentConfig(), options=own, workers=workers, max_val_images=limit, progress=False
        )
        images = 0
        meter: Any = problem.meter().to(where)  # type: ignore[attr-defined]
        with torch.inference_mode():
            for batch, targets in problem.validation(opened, card.input, settings):
                meter.update(problem.infer(model, batch.to(where), asked), targets.to(where))
                images += len(batch)
        if team is not None:
            # Images of many sizes may be shared out with some twice, whose targets count for nothing.
            known = [len(opened.val)] if hasattr(opened.val, "__len__") else []
            images = min(team.total(images), *known, *([limit] if limit else []))
        figures = {key: float(value) for key, value in meter.compute().items()}
        result = {
            "run": str(run), "data": spec, "task": card.task, "images": images, **figures, **problem.detail(meter, opened),
        }  # fmt: skip
        if out is not None and (team is None or team.rank == 0):
            file = Path(out) if out.endswith(".json") else Path(out) / "result.json"
            write_json(file, result)
            problem.draw(result, file.with_suffix(""))
        return result


@contextlib.contextmanager
def processes(device: str) -> Iterator[Team | None]:
    """The processes that torchrun or srun has started, inside; None for one that stands alone, or whose script has met
    the others already.

    Raises:
        UserError: ``device`` names one for all of them.
    """
    here = place()
    if here is None or here.world == 1 or (dist.is_available() and dist.is_initialized()):
        yield None
        return
    if device not in ("auto", "cpu"):
        raise UserError(
            f"{here.by} has started {here.world} processes, each with a device of its own: leave out --device {device}"
        )
    from deepvit.training.meeting import team

    def start(place: str) -> None:
        raise AssertionError("the launcher starts them")

    with team(device, None, start) as one:
        yield one


def asking(problem: tasks.Task, options: dict[str, Any]) -> Any:
    """How a run's network is asked: the task's ``infer_options`` from options by name.

    Raises:
        UserError: an option that the task does not have, or a value of another type.
    """
    kind = problem.infer_options
    return build(kind, checked(options, options_of(kind), problem.name))


def more(words: list[str]) -> Sequence[Option]:
    """The options for asking the network of the run that the words name first, and those of the data sources."""
    return of_task(task_of(words))


def of_task(task: type[tasks.Task]) -> Sequence[Option]:
    """What a task takes when it is measured: how its network is asked, and the options of the data sources."""
    return [*options_of(task.infer_options), *source_options([])]


def task_of(words: list[str]) -> type[tasks.Task]:
    """The task of the run that the words name first; the usual one where they name none."""
    first = words[0] if words and not words[0].startswith("-") else None
    named = first is not None and (Path(first) / "model.json").exists()
    return tasks.find(read_card(str(first)).task if named else tasks.DEFAULT)


def show(result: dict[str, Any]) -> None:
    """Print an evaluation: the figures, and what the task tells more."""
    if (here := place()) is not None and here.rank:
        return  # the first process says it
    kind = tasks.find(result["task"])
    figures = kind.told_figures(result)
    Console().print(
        f"{result['run']} on {result['data']}: {figures}, {result['images']:,} images",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
    kind.show_detail(result)


COMMAND = Command(
    evaluate,
    show,
    more,
    examples=(
        "deepvit evaluate runs/a",
        "deepvit evaluate runs/a --data OTHER_PHOTOS --out result.json",
    ),
    of_task=of_task,
)
