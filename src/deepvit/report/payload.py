"""From measurements to what the page's script reads: plain JSON, rounded, with no words of its own."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deepvit.collapse.catalogue import MATRICES, METRICS
from deepvit.collapse.results import Measurements, Series
from deepvit.report import charts, pictures
from deepvit.report.words import spoken_blocks
from deepvit.report.worth import cell_of, lesion_columns, lesion_series, worth_strip

MAPS_BUDGET = 5_500_000
"""Characters of maps and images in one page, all models together; the rest of a page is far below 1 MB."""
PATCHES_BUDGET = 1_600_000
"""Characters of patches in the page of one model; comparisons have none."""


def page_data(
    results: Sequence[Measurements],
    names: Sequence[str],
    profiles: Sequence[charts.Profile],
    before: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Everything that the script draws, for one model or several side by side; ``names`` are told apart.

    ``before``: charts that stand before the profiles, as the script reads them.
    """
    zeros = {"cka": charts.scale_start(results, "cka")}
    models = [
        _model(
            result,
            name,
            color,
            MAPS_BUDGET // len(results),
            PATCHES_BUDGET if len(results) == 1 else 0,
            zeros,
        )
        for color, (result, name) in enumerate(zip(results, names, strict=True))
    ]
    for model in models:
        model["strip"]["low"] = _lowest(results)
    return {
        "models": models,
        "charts": [*before, *(charts.chart_payload(profile, results) for profile in profiles)],
        "csv": numbers_csv(results, names),
    }


def _model(
    result: Measurements, name: str, color: int, budget: int, patches: int, zeros: Mapping[str, float]
) -> dict[str, Any]:
    indices = [block.index for block in result.blocks]
    spoken = spoken_blocks(result)
    return {
        "name": name,
        "color": color % 8,
        "indices": indices,
        "from": spoken[0] if spoken else None,
        "to": spoken[-1] if spoken else None,
        "series": {
            key: {
                "values": rounded(series.values),
                "low": _shifted(key, series, -1),
                "high": _shifted(key, series, 1),
                "heads": _heads(result.per_head.get(key)),
            }
            for key, series in result.series.items()
            if key in METRICS  # a file may hold a metric that only the program that wrote it knows
        }
        | lesion_series(result),
        "worth": worth_strip(result, name, spoken),
        "strip": _strip(result, name, spoken),
        "matrices": {
            key: {
                "title": f"{name}: {MATRICES.get(key, key)}",
                "blocks": [str(index) for index in indices],
                "values": [rounded(row) for row in matrix],
                "low": min((value for row in matrix for value in row if value is not None), default=0.0),
                "zero": zeros.get(key, 0.0),
            }
            for key, matrix in result.matrices.items()
        },
        "maps": pictures.maps_payload(result, budget),
        "patches": pictures.patches_payload(result, patches) if patches else None,
    }


def _lowest(results: Sequence[Measurements]) -> float:
    """The least value on any strip: below zero the colour scale needs its other half."""
    values = (
        value
        for result in results
        for key in charts.STRIP_ROWS
        if key in result.series
        for value in result.series[key].values
        if value is not None
    )
    return min(values, default=0.0)


def _strip(result: Measurements, name: str, spoken: Sequence[int]) -> dict[str, Any]:
    indices = [block.index for block in result.blocks]
    rows = [
        {"name": words, "values": rounded(result.series[key].values)}
        for key, words in charts.STRIP_ROWS.items()
        if key in result.series and any(value is not None for value in result.series[key].values)
    ]
    return {
        "title": f"{name} from the first block to the last",
        "blocks": [str(index) for index in indices],
        "indices": indices,
        "rows": rows,
        "from": indices.index(spoken[0]) if spoken else None,
        "to": indices.index(spoken[-1]) if spoken else None,
        "marked": [indices.index(index) for index in spoken],
        "hint": "One cell a block, from the input on the left to the output on the right.",
    }


def rounded(values: Sequence[float | None]) -> list[float | None]:
    """Five significant digits: more than a screen shows, a third of the characters."""
    return [None if value is None else float(f"{value:.5g}") for value in values]


def _shifted(key: str, series: Series, sign: int) -> list[float | None]:
    """One edge of the band; a share cannot lie below 0, whatever its deviation says."""
    info = METRICS[key]
    least = -math.inf if info.low is None else info.low
    most = math.inf if info.high is None else info.high
    return rounded(
        [
            None if value is None or width is None else min(most, max(least, value + sign * width))
            for value, width in zip(series.values, series.spread, strict=True)
        ]
    )


def _heads(per_head: Sequence[Sequence[float | None] | None] | None) -> list[list[float | None]] | None:
    """Single heads of every block, where the metric was measured for them."""
    return None if per_head is None else [rounded(heads or []) for heads in per_head]


def numbers_csv(results: Sequence[Measurements], names: Sequence[str]) -> str:
    """Every per-block number with its spread over images, one row a block, in full precision."""
    keys = [key for key in METRICS if any(key in result.series for result in results)]
    lesions = lesion_columns(results)
    named = [f"lesion_{each['key']}" + ("_score" if each["part"] == "score" else "") for each in lesions]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["model", "block", "name", *(part for key in [*keys, *named] for part in (key, f"{key}_spread"))]
    )
    for result, name in zip(results, names, strict=True):
        for place, block in enumerate(result.blocks):
            cells: list[float | str | None] = []
            for key in keys:
                series = result.series.get(key)
                cells += [series.values[place], series.spread[place]] if series else [None, None]
            for column in lesions:
                cells += cell_of(result, place, column)
            writer.writerow(
                [name, block.index, block.name, *("" if cell is None else cell for cell in cells)]
            )
    return stream.getvalue()
