"""``deepvit check-data``: what is wrong in a data set, before training; exit code 1 when something is."""

from __future__ import annotations

import json as jsons
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deepvit import tasks
from deepvit.commands.command import Command
from deepvit.data import DataOptions
from deepvit.data.checking import DataCheck
from deepvit.options import Option, options_of

SHOWN_FILES = 5
"""Files named below a finding that must be mended; the JSON has all."""


@dataclass(frozen=True)
class Report:
    """What was found, and how to print it."""

    task: str
    found: DataCheck
    json: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "format": "deepvit-check/1",
            "task": self.task,
            "wrong": len(self.found.wrong),
            **self.found.to_dict(),
        }


def check_data(
    data: str,
    task: str | None = None,
    json: bool = False,
    progress: bool = True,
    data_args: dict[str, Any] | None = None,
) -> Report:
    """Read a whole data set once and say what is wrong in it.

    Args:
        data: data set, as for train.
        task: what it is for: classification or segmentation; by default told from the data.
        json: print JSON instead of tables.
        progress: show a progress bar with the time left, on a terminal.
        data_args: options of the data source by name, as for train (``--data.KEY`` on the command line).

    Returns:
        the findings, in ``found``.

    Raises:
        UserError: data that cannot be opened at all, or a task whose data is not checked.
    """
    kind = tasks.for_data(data) if task is None else tasks.find(task)
    opened = kind.open_unchecked(data, DataOptions.of(**(data_args or {})))
    total = sum(len(part) for part in (opened.train, opened.val) if hasattr(part, "__len__"))
    console = Console(stderr=True)
    shown = progress and not json and sys.stderr.isatty()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        number = bar.add_task("reading", total=total)
        found = kind.check(opened, lambda done: bar.update(number, completed=done))
    return Report(kind.name, found, json)


def source_options(words: list[str]) -> list[Option]:
    """Options of the data sources, typed as for train."""
    return [
        Option(f"data_args.{o.name}", o.hint, o.default, o.help, ("data_args", o.name))
        for o in options_of(DataOptions)
    ]


def show(report: Report) -> None:
    """Print the figures, what is wrong, what should be known, and a line that says whether all is well."""
    if report.json:
        print(jsons.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return
    console, found = Console(), report.found
    parts = ", ".join(f"{number:,} in {part}" for part, number in found.images.items())
    console.print(f"{found.data} ({report.task}): {parts}", highlight=False, markup=False, soft_wrap=True)
    headings, rows = found.table()
    if rows:
        table = Table(*headings)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for finding in found.findings:
        style = "bold red" if finding.severity == "wrong" else "yellow"
        line = Text.assemble((f"{finding.severity}: ", style), finding.text)
        console.print(line, soft_wrap=True, highlight=False)
        for name in (
            finding.files[:SHOWN_FILES] if finding.severity == "wrong" and len(finding.files) > 1 else ()
        ):
            console.print(Text(f"    {name}"), soft_wrap=True, highlight=False)
        if finding.severity == "wrong" and len(finding.files) > SHOWN_FILES:
            console.print(
                f"    and {len(finding.files) - SHOWN_FILES:,} more (--json names all)", highlight=False
            )
    wrong, notices = len(found.wrong), len(found.findings) - len(found.wrong)
    console.print(
        f"{wrong} to be mended, {notices} to be known" if found.findings else "nothing is wrong",
        highlight=False,
    )


def code(report: Report) -> int:
    """1 when something must be mended."""
    return 1 if report.found.wrong else 0


COMMAND = Command(
    check_data,
    show,
    more=source_options,
    code=code,
    examples=("deepvit check-data PHOTOS", "deepvit check-data SCENES --task segmentation --json"),
)
