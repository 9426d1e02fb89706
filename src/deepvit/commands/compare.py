"""``deepvit compare``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepvit.commands.command import Command
from deepvit.errors import UserError
from deepvit.experiments.rows import columns_of, curves_of, measurements, row_of, written
from deepvit.files import write_json
from deepvit.report import compare_reports
from deepvit.runs import Run, read_run


def compare(runs: list[str], out: str = "compare") -> dict[str, Any]:
    """Put runs side by side: figures, cost and collapse as a table, curves and depth profiles as one HTML file.

    Args:
        runs: two or more run folders.
        out: folder for ``compare.html`` and ``compare.json``.

    Returns:
        ``runs``: name → numbers; ``report``: the path of the HTML file, or None where no run has a collapse report.

    Raises:
        UserError: fewer than two runs, a folder without a finished run, or a run named twice.
    """
    if len(runs) < 2:
        raise UserError("compare takes two or more run folders")
    if len({Path(r).resolve() for r in runs}) != len(runs):
        raise UserError(f"a run is named twice: {', '.join(runs)}")
    read = name_runs([read_run(path) for path in runs])
    rows = {name: row_of(run) for name, run in read.items()}
    kinds = {run.task for run in read.values()}
    if len(kinds) > 1:
        raise UserError(
            f"these runs are of different tasks ({', '.join(sorted(kinds))}): their figures do not compare"
        )
    data = {run.info["data"] for run in read.values()}
    found = {name: m for name, run in read.items() if (m := measurements(run.path)) is not None}
    for name, one in found.items():
        one.name = name
    result: dict[str, Any] = {
        "format": "deepvit-compare/1",
        "task": kinds.pop(),
        "runs": rows,
        "data": sorted(data),
        "report": None,
    }
    if found:
        table = [{"run": name, **cells_of(row, result["task"])} for name, row in rows.items()]
        path = Path(out) / "compare.html"
        curves = {name: curves_of(run.path) for name, run in read.items()}
        compare_reports(list(found.values()), curves=curves, table=table, out=path)
        result["report"] = str(path)
    write_json(Path(out) / "compare.json", result)
    return result


def name_runs(runs: list[Run]) -> dict[str, Run]:
    """Short names: the last part of each path, or the whole path where that is not enough to tell them apart."""
    short = [run.path.resolve().name for run in runs]
    return {(s if short.count(s) == 1 else str(run.path)): run for s, run in zip(short, runs, strict=True)}


def cells_of(row: dict[str, float | None], task: str) -> dict[str, str]:
    """A row as heading → text."""
    return {heading: written(row[column], digits) for column, (heading, digits) in columns_of(task).items()}


def show(result: dict[str, Any]) -> None:
    """Print the table with runs as columns, which fits narrow terminals, and the path of the report."""
    console = Console()
    table = Table("", *(escape(name) for name in result["runs"]))
    for column, (heading, digits) in columns_of(result["task"]).items():
        table.add_row(heading, *(written(row[column], digits) for row in result["runs"].values()))
    console.print(table)
    if len(result["data"]) > 1:
        console.print(
            f"these runs were tested on different data ({', '.join(result['data'])}): figures do not compare"
        )
    if result["report"]:
        print(f"report: {result['report']}")


COMMAND = Command(compare, show)
