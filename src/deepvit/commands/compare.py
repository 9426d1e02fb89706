"""``deepvit compare``: finished runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from deepvit.collapse.results import Measurements
from deepvit.commands.command import Command
from deepvit.errors import UserError
from deepvit.experiments.rows import (
    columns_of,
    curve_names,
    curves_of,
    described,
    measurements,
    row,
    written,
)
from deepvit.files import write_json
from deepvit.report import compare_reports, load
from deepvit.report.differences import warnings
from deepvit.runs import Run, read_run
from deepvit.terminal import column_widths, print_table, say


@dataclass
class Subject:
    """One network of a comparison: a finished run, a collapse report, or a run with its report."""

    path: Path
    run: Run | None
    report: Measurements | None


def compare(runs: list[str], out: str = "compare") -> dict[str, Any]:
    """Put networks side by side: figures, cost and collapse as a table, curves and depth profiles as one HTML file.

    Args:
        runs: two or more run folders, folders that diagnose wrote, or collapse.json files.
        out: folder for ``compare.html`` and ``compare.json``.

    Returns:
        ``runs``: name → numbers; ``warnings``: what makes these numbers incomparable; ``report``: the path of the
        HTML file, or None where nothing has a collapse report.

    Raises:
        UserError: fewer than two, a folder with neither a finished run nor a report, or one named twice.
    """
    if len(runs) < 2:
        raise UserError("compare takes two or more run folders, diagnosis folders or collapse.json files")
    if len({Path(r).resolve() for r in runs}) != len(runs):
        raise UserError(f"a run is named twice: {', '.join(runs)}")
    read = named([subject(path) for path in runs])
    kinds = sorted({one.run.task for one in read.values() if one.run})
    if len(kinds) > 1:
        raise UserError(
            f"these runs are of different tasks ({', '.join(kinds)}): their figures do not compare"
        )
    task = kinds[0] if kinds else None
    rows = {name: row(one.run, one.report, task) for name, one in read.items()}
    data = {one.run.info["data"] for one in read.values() if one.run}
    found = []
    for name, one in read.items():
        if one.report is not None:
            one.report.name = name
            if one.run is not None:
                one.report.provenance.setdefault("run", described(one.run))
            found.append(one.report)
    result: dict[str, Any] = {
        "format": "deepvit-compare/1",
        "task": task,
        "runs": rows,
        "data": sorted(data),
        "warnings": warnings(found),
        "report": None,
    }
    if found:
        table = [{"run": name, **cells_of(numbers, task)} for name, numbers in rows.items()]
        path = Path(out) / "compare.html"
        curves = {name: curves_of(one.run.path) for name, one in read.items() if one.run}
        compare_reports(found, curves=curves, table=table, out=path, curve_names=curve_names(task))
        result["report"] = str(path)
    write_json(Path(out) / "compare.json", result)
    return result


def subject(path: str) -> Subject:
    """What a path holds; a run folder is read as a run, with its collapse report if it has one.

    Raises:
        UserError: neither a finished run nor a collapse report.
    """
    place = Path(path)
    if place.is_file() or ((place / "collapse.json").exists() and not (place / "config.yaml").exists()):
        return Subject(place.parent if place.is_file() else place, None, load(place))
    run = read_run(path)
    return Subject(run.path, run, measurements(run.path))


def named(subjects: list[Subject]) -> dict[str, Subject]:
    """Short names: the last part of each path, or the whole path where that is not enough to tell them apart."""
    short = [one.path.resolve().name for one in subjects]
    names = [s if short.count(s) == 1 else str(one.path) for s, one in zip(short, subjects, strict=True)]
    return dict(zip(names, subjects, strict=True))


def cells_of(row: dict[str, float | None], task: str | None) -> dict[str, str]:
    """A row as heading → text."""
    return {heading: written(row[column], digits) for column, (heading, digits) in columns_of(task).items()}


def show(result: dict[str, Any]) -> None:
    """Print the table with runs as columns, which fits narrow terminals, and the path of the report."""
    console = Console()
    columns = columns_of(result["task"])
    # Runs as columns fit narrow terminals; many of them do not, and become rows.
    table = [
        [heading, *(written(row[column], digits) for row in result["runs"].values())]
        for column, (heading, digits) in columns.items()
    ]
    headings = ["", *result["runs"]]
    if column_widths([headings, *table], console.width) is None:
        headings, *table = (list(each) for each in zip(headings, *table, strict=True))
    print_table(headings, table, console)
    told = result["warnings"]
    if len(result["data"]) > 1 and not any(result["data"][0] in each for each in told):
        told = [
            f"These runs were tested on different data ({', '.join(result['data'])}): figures do not compare.",
            *told,
        ]
    for each in told:
        console.print(each, highlight=False, markup=False)
    if result["report"]:
        say(f"report: {result['report']}")


COMMAND = Command(
    compare,
    show,
    examples=(
        "deepvit compare runs/a runs/b",
        "deepvit compare runs/a diagnosis/vit_small --out side",
    ),
)
