"""Several models on one page: verdicts under each other, profiles overlaid, one picture through all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from deepvit.collapse.results import Measurements
from deepvit.errors import UserError
from deepvit.files import write_atomic
from deepvit.report import charts, page, sentences
from deepvit.report.differences import differences, warnings
from deepvit.report.payload import page_data, rounded
from deepvit.report.spoken import spoken
from deepvit.report.store import load
from deepvit.report.words import (
    chart_words,
    finding_rows,
    lead,
    measurement_facts,
    model_facts,
    subject,
)
from deepvit.report.worth import lesion_charts
from deepvit.report.write import (
    definitions,
    frame,
    matrix_titles,
    numbers_table,
)

Curves = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]


def compare_reports(
    reports: Sequence[Any],
    curves: Curves | None = None,
    table: Sequence[Mapping[str, Any]] | None = None,
    out: str | os.PathLike[str] = "compare.html",
    *,
    title: str | None = None,
    x_name: str = "epoch",
    curve_names: Mapping[str, str] | None = None,
) -> Path:
    """Write one HTML page with these models side by side; returns its path.

    ``reports``: measurements, what ``diagnose`` returns, ``collapse.json`` files, or folders with one.
    ``curves``: {run: {metric: [[x, y], ...]}}, one chart a metric, a line a run; runs named as a model get
    its colour; ``curve_names`` says what people call a metric, with its unit after a comma ("top-1 accuracy, %").
    ``table``: rows of accuracy and cost, one dict a row, drawn as they come. ``out``: the HTML
    file, or a folder for ``report.html``. Raises UserError when there is nothing to compare or a file cannot
    be read.
    """
    results = [spoken(_measurements(report)) for report in reports]
    if not results:
        raise UserError("nothing to compare: give at least one report (a collapse.json or a run folder)")
    target = Path(out)
    if target.suffix.lower() not in (".html", ".htm"):
        target = target / "report.html"
    return write_atomic(
        target, compare_html(results, curves, table, title=title, x_name=x_name, curve_names=curve_names)
    )


def compare_html(
    results: Sequence[Measurements],
    curves: Curves | None = None,
    table: Sequence[Mapping[str, Any]] | None = None,
    *,
    title: str | None = None,
    x_name: str = "epoch",
    curve_names: Mapping[str, str] | None = None,
) -> bytes:
    """The page of ``compare_reports`` in UTF-8."""
    results = [spoken(result) for result in results]
    names = distinct_names(results)
    found = charts.profiles(results, together=len(results) == 1)
    worth = lesion_charts(results)
    data = page_data(results, names, found, [payload for payload, _ in worth])
    data["curves"] = curve_charts(curves or {}, names, x_name, curve_names or {})
    return page.render(
        "compare.html.jinja",
        data,
        title=title or _title(results),
        models=[
            {
                "result": result,
                "name": name,
                "place": place,
                "color": place % 8,
                "lead": lead(result),
                "subject": subject(result),
                "facts": model_facts(result),
                "measurement": measurement_facts(result),
                "findings": finding_rows(result),
            }
            for place, (result, name) in enumerate(zip(results, names, strict=True))
        ],
        worth=[words for _, words in worth],
        charts=chart_words(found),
        matrices=matrix_titles(results),
        notes=notes(data["models"]),
        outcome=outcome_table(table or []),
        differ=differences(results, names),
        warnings=warnings(results),
        numbers=numbers_table(results, names),
        definitions=definitions(results),
        **frame(),
    )


def notes(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was left out of the maps of any model, each remark once."""
    return list(dict.fromkeys(note for model in models if model["maps"] for note in model["maps"]["notes"]))


def _measurements(report: Any) -> Measurements:
    if isinstance(report, Measurements):
        return report
    if isinstance(report, str | os.PathLike):
        return load(report)
    results = getattr(report, "measurements", None)
    if isinstance(results, Measurements):
        return results
    raise UserError(
        f"cannot compare a {type(report).__name__}: give reports, collapse.json files or run folders"
    )


def distinct_names(results: Sequence[Measurements]) -> list[str]:
    """The models' names, told apart by a number where two are the same."""
    names: list[str] = []
    for result in results:
        name, number = result.name, 2
        while name in names:
            name, number = f"{result.name} ({number})", number + 1
        names.append(name)
    return names


def _title(results: Sequence[Measurements]) -> str:
    """What the comparison comes to, in one line: who collapses and who does not."""
    if len(results) == 1:
        return sentences.headline(results[0].verdict)
    names = distinct_names(results)
    fallen = [name for name, result in zip(names, results, strict=True) if result.verdict.collapsed]
    flat = sum(result.verdict.kind == "untrained_or_uniform" for result in results)
    if not fallen:
        words = f"None of {len(results)} networks collapses"
    elif len(fallen) == len(results):
        words = "Both networks collapse" if len(results) == 2 else f"All {len(results)} networks collapse"
    elif len(fallen) == 1:
        words = f"{fallen[0]} collapses, {'the other does not' if len(results) == 2 else 'the others do not'}"
    else:
        words = f"{len(fallen)} of {len(results)} networks collapse"
    idle = [
        name for name, result in zip(names, results, strict=True) if result.verdict.kind in ("idle", "harm")
    ]
    if idle:
        who = idle[0] if len(idle) == 1 else f"{len(idle)} of {len(results)}"
        words += f"; {who} {'has' if len(idle) == 1 else 'have'} blocks to spare"
    return words + (f"; {flat} look{'s' if flat == 1 else ''} untrained" if flat else "")


def curve_charts(
    curves: Curves, names: Sequence[str], x_name: str, spoken_names: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """One chart a metric, a line a run; a run named as a model gets the model's colour.

    A metric that is another one's equal in every run (the only term of a loss, and the loss) is drawn once.
    """
    runs = list(curves)
    order = [*names, *(run for run in runs if run not in names)]
    metrics = list(dict.fromkeys(metric for run in runs for metric in curves[run]))
    found: list[dict[str, Any]] = []
    for metric in metrics:
        series = []
        for run in runs:
            points = sorted((float(x), float(y)) for x, y in curves[run].get(metric, ()))
            if points:
                place = order.index(run)
                series.append(
                    {
                        "name": run,
                        "color": place % 8,
                        "dash": place % 8,
                        "x": rounded([x for x, _ in points]),
                        # A loss that diverged is a gap in the line, not a page that does not open.
                        "y": rounded([y if abs(y) < float("inf") else None for _, y in points]),
                    }
                )
        if series and not any(each["series"] == series for each in found):
            title, unit = _curve_title(metric, spoken_names or {})
            found.append({"title": title, "unit": unit, "xName": x_name, "series": series})
    return found


def _curve_title(metric: str, spoken_names: Mapping[str, str]) -> tuple[str, str]:
    """What people call a metric, and its unit: "train/loss_ce" is "training loss ce" where nobody says better."""
    said = spoken_names.get(metric)
    if said is None:
        part, slash, rest = metric.partition("/")
        words = f"{_PARTS[part]} {rest}" if slash and part in _PARTS else metric
        said = words.replace("/", " ").replace("_", " ")
    title, comma, unit = said.rpartition(", ")
    return (title, unit) if comma else (said, "")


_PARTS = {"train": "training", "val": "validation", "test": "test"}


_NUMERIC = frozenset("0123456789.,e+-−–±%× ")


def _is_text(cell: Any) -> bool:
    """Whether a cell is words; numbers that come already written ("97.2 ± 0.4", "–") line up as numbers."""
    return isinstance(cell, str) and not set(cell) <= _NUMERIC


def outcome_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The caller's rows of accuracy and cost: columns in the order in which they first occur."""
    if not rows:
        return None
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column) for column in columns] for row in rows]
    texts = [any(_is_text(row[place]) for row in cells) for place in range(len(columns))]
    return {
        "heads": [
            {"title": column.replace("_", " "), "formula": "", "text": text}
            for column, text in zip(columns, texts, strict=True)
        ],
        "rows": [
            [
                {
                    "value": value,
                    "shown": value if isinstance(value, str) else page.number(cast("float | None", value)),
                    "text": text,
                    "spread": None,
                    "over": False,
                }
                for value, text in zip(row, texts, strict=True)
            ]
            for row in cells
        ],
    }
