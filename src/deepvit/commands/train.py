"""``deepvit train``: any timm model, cures and diversity losses, for any task."""

from __future__ import annotations

from pathlib import Path

from deepvit import tasks
from deepvit.commands.command import Command, value_after
from deepvit.options import Option
from deepvit.parsing import read_yaml, recipe_file
from deepvit.runs import Run
from deepvit.runs.place import place
from deepvit.training.callbacks import clock
from deepvit.training.config import train_options
from deepvit.training.run import train


def options(words: list[str]) -> tuple[Option, ...]:
    """The options of the task that the words or their ``--config`` name."""
    task, file = value_after(words, "--task"), value_after(words, "--config")
    if file is None and "--resume" in words and (out := value_after(words, "--out")):
        file = f"{out}/config.yaml" if (Path(out) / "config.yaml").is_file() else None
    if task is None and file is not None:
        task = read_yaml(recipe_file(file), "training options").get("task")
    return train_options(str(task or tasks.DEFAULT))


def show(run: Run) -> None:
    """Print the result of a run and where it lies."""
    if (here := place()) is not None and here.rank:
        return  # the first process says it
    if "until" in run.info:  # it says itself how it goes on
        print(f"run folder: {run.path}")
        return
    result = run.result
    figures = tasks.find(run.task).told_figures(result, "val/")
    print(
        f"val {figures}; {result['parameters'] / 1e6:.2f} M parameters, "
        f"{result['seconds_per_epoch']:.1f} s an epoch, {clock(run.info['wall_seconds'])} in all"
    )
    watched = tasks.find(run.task).column()
    best, deployed = result.get("best_epoch"), result.get("epoch")
    if best is not None:
        told = watched.told(result[f"best/{watched.key}"])
        kept = (
            f"the weights kept are those of epoch {deployed}" if best != deployed else "its weights are kept"
        )
        print(f"best epoch: {best} of {result['epochs']} (val {told}); {kept}")
    if "verdict" in run.info:
        print(f"collapse: {run.info['verdict']}")
    print(f"run folder: {run.path}")
    if (run.path / "report.html").exists():
        print(f"collapse report: {run.path / 'report.html'}")


COMMAND = Command(
    train,
    show,
    options,
    config=True,
    examples=(
        "deepvit train --data digits --epochs 5",
        "deepvit train --data PHOTOS --model vit_small_patch16_224 --weights pretrained --cures reattention@last:4",
    ),
)
