"""``deepvit study``: depths x methods x seeds: table, figure and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepvit.commands.command import Command, value_after
from deepvit.experiments.grid import study_options
from deepvit.experiments.halving import halving_lines
from deepvit.experiments.study import study, table_of
from deepvit.options import Option
from deepvit.parsing import read_yaml, recipe_file
from deepvit.tasks import DEFAULT
from deepvit.terminal import print_table


def options(words: list[str]) -> tuple[Option, ...]:
    """The study's options and those of its runs, by the task that the words or the recipe name."""
    task = value_after(words, "--train.task")
    if task is None and words and not words[0].startswith("-"):
        train = read_yaml(recipe_file(words[0]), "study recipe").get("train", {})
        task = train.get("task") if isinstance(train, dict) else None
    return study_options(str(task or DEFAULT))


def show(result: dict[str, Any]) -> None:
    """Print the table and the paths of what was written."""
    headings, rows = table_of(result)
    print_table(headings, rows)
    if "halving" in result:
        print("\n".join(halving_lines(result["halving"])))
    out = Path(result["out"])
    for name, what in (
        ("report.html", "report"),
        ("figure.png", "figure"),
        ("table.md", "table"),
        ("measures.md", "measures"),
        ("halving.md", "halving"),
        ("study.json", "all numbers"),
    ):
        if (out / name).exists():
            print(f"{what + ':':<13}{out / name}")


COMMAND = Command(
    study,
    show,
    options,
    examples=(
        "deepvit study quickstart --out demo",
        "deepvit study cures --halving",
        "deepvit study depth --depths 12 24 --seeds 0 1 2 --train.epochs 10",
    ),
)
