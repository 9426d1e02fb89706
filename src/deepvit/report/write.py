"""A diagnosis on disk: ``collapse.json``, ``report.html`` and, if asked for, figures for papers."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepvit
from deepvit.collapse.catalogue import MATRICES, METRICS
from deepvit.collapse.results import Measurements
from deepvit.files import write_atomic
from deepvit.report import charts, page
from deepvit.report.cure_commands import cure_rows
from deepvit.report.payload import page_data
from deepvit.report.run import run_curves
from deepvit.report.sections import Section
from deepvit.report.spoken import spoken
from deepvit.report.store import save
from deepvit.report.words import (
    chart_words,
    finding_rows,
    has_random_weights,
    lead,
    margins,
    measurement_facts,
    model_facts,
    subject,
    trained_facts,
    weights_remark,
)
from deepvit.report.worth import cell_of, lesion_charts, lesion_columns


def write_report(
    results: Measurements,
    out: str | os.PathLike[str],
    figures: bool = False,
    sections: Sequence[Section] = (),
    foremost: Sequence[str] = (),
) -> Path:
    """Write ``collapse.json`` and ``report.html`` into the folder ``out``; returns the path of the report.

    With ``figures`` the profiles and matrices are also written as PNG and SVG into ``out/figures``. Every
    file appears whole or not at all. ``sections``: shown before what is about collapse.
    ``foremost``: metrics whose charts come first.
    """
    folder = Path(out)
    save(results, folder / "collapse.json")
    path = write_atomic(folder / "report.html", report_html(results, sections, foremost))
    if figures:
        # matplotlib costs a second to import, and most reports are read on a screen.
        from deepvit.report.figures import write_figures

        write_figures(results, folder / "figures")
    return path


def report_html(
    results: Measurements, sections: Sequence[Section] = (), foremost: Sequence[str] = ()
) -> bytes:
    """The report of one model as a self-contained HTML page, in UTF-8."""
    results = spoken(results)
    found = charts.profiles([results], together=True)
    found.sort(key=lambda profile: not set(profile.keys) & set(foremost))
    worth = lesion_charts([results])
    data = page_data([results], [results.name], found, [payload for payload, _ in worth])
    data["curves"] = run_curves(results.provenance.get("run"))
    return page.render(
        "report.html.jinja",
        data,
        result=results,
        sections=sections,
        subject=subject(results),
        trained=trained_facts(results),
        random=has_random_weights(results),
        remark=weights_remark(results),
        lead=lead(results),
        cures=cure_rows(results),
        margins=margins(results),
        worth=[words for _, words in worth],
        charts=chart_words(found),
        matrices=matrix_titles([results]),
        numbers=numbers_table([results], [results.name]),
        findings=finding_rows(results),
        model_facts=model_facts(results),
        measurement_facts=measurement_facts(results),
        definitions=definitions([results]),
        **frame(),
    )


def frame() -> dict[str, str]:
    """What every page says about itself."""
    now = datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC")
    return {"version": deepvit.__version__, "written": now}


def matrix_titles(results: Sequence[Measurements]) -> dict[str, dict[str, str]]:
    """The matrices that any of the models has, in the catalogue's order, with heading and reading line."""
    return {
        key: charts.matrix_words(key) for key in MATRICES if any(key in result.matrices for result in results)
    }


def definitions(results: Sequence[Measurements]) -> list[Any]:
    """The catalogue's entries of what these models were measured for."""
    return [METRICS[key] for key in charts.shown_metrics(results)]


def numbers_table(results: Sequence[Measurements], names: Sequence[str]) -> dict[str, Any]:
    """Heads and rows of the table of all numbers: a row a block, a column a metric."""
    keys = charts.shown_metrics(results)
    several = len(results) > 1
    heads: list[dict[str, Any]] = [{"title": "Model", "formula": "", "text": True}] if several else []
    heads.append({"title": "Block", "formula": "counted from 0", "text": False})
    heads += [
        {"title": charts.metric_title(key), "formula": METRICS[key].formula, "text": False} for key in keys
    ]
    lesions = lesion_columns(results)
    heads += [{"title": each["title"], "formula": each["formula"], "text": False} for each in lesions]
    rows = []
    for result, name in zip(results, names, strict=True):
        similar = set(result.similar.blocks)
        for place, block in enumerate(result.blocks):
            row = [_cell(name, name, text=True)] if several else []
            row.append(_cell(block.index, str(block.index)))
            for key in keys:
                series = result.series.get(key)
                value = series.values[place] if series else None
                spread = series.spread[place] if series and value is not None else None
                over = key == "attention_similarity" and block.index in similar
                row.append(_cell(value, page.number(value), spread=spread, over=over))
            for column in lesions:
                value, spread = cell_of(result, place, column)
                row.append(_cell(value, page.number(value), spread=spread))
            rows.append(row)
    return {"heads": heads, "rows": rows}


def _cell(
    value: Any, shown: str, *, text: bool = False, spread: float | None = None, over: bool = False
) -> dict[str, Any]:
    return {"value": value, "shown": shown, "text": text, "spread": spread, "over": over}
