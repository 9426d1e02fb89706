"""A run as one row of a table: the figure that its task watches, collapse, cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from deepvit import tasks
from deepvit.collapse.results import Measurements
from deepvit.files import read_json
from deepvit.report import load
from deepvit.runs import Run
from deepvit.runs.folder import read_metrics

# column → (heading, digits after the point); the order of every table, behind the figure that the task watches
MEASURED: dict[str, tuple[str, int]] = {
    "similar_blocks": ("similar blocks", 1),
    "cross_layer": ("cross-layer similarity", 3),
    "cross_layer_centred": ("same, centred maps", 3),
    "patch_similarity": ("patch similarity, last block", 3),
    "seconds_per_epoch": ("s an epoch", 2),
    "parameters": ("parameters (M)", 3),
}


def columns_of(task: str | None) -> dict[str, tuple[str, int]]:
    """The columns of a table of runs of one task, or of networks that no run trained: column → (heading, digits)."""
    if task is None:
        return dict(MEASURED)
    watched = tasks.find(task).column()
    return {watched.key: (watched.heading, watched.digits), **MEASURED}


def curve_names(task: str | None) -> dict[str, str]:
    """Column of metrics.csv → what people call it, with its unit."""
    own = tasks.find(task).columns if task else ()
    return {
        **{f"val/{column.key}": f"{column.title}{column.unit and ', ' + column.unit}" for column in own},
        "lr": "learning rate",
        "seconds": "time an epoch, s",
    }


def measurements(run: Path) -> Measurements | None:
    """The collapse report of a run folder, or None where it has none.

    Raises:
        UserError: the file is damaged or of another version.
    """
    return load(run) if (run / "collapse.json").exists() else None


def row_of(run: Run) -> dict[str, float | None]:
    """The numbers of one run, by the names of ``columns_of``; None where the network has no collapse report."""
    return row(run, measurements(run.path), run.task)


def row(run: Run | None, found: Measurements | None, task: str | None) -> dict[str, float | None]:
    """The numbers of a network by the names of ``columns_of``: of its training, and of its collapse report."""
    result: Mapping[str, Any] = run.result if run else {}
    parameters = result.get("parameters", found.model.get("parameters") if found else None)
    watched = [tasks.find(task).watch] if task else []
    numbers: dict[str, float | None] = {
        **{key: result.get(f"val/{key}") for key in watched},
        "similar_blocks": None,
        "cross_layer": None,
        "cross_layer_centred": None,
        "patch_similarity": None,
        "seconds_per_epoch": result.get("seconds_per_epoch"),
        "parameters": None if parameters is None else parameters / 1e6,
    }
    if found is not None:
        numbers["similar_blocks"] = float(len(found.similar.blocks))
        numbers["cross_layer"] = mean_of(found, "attention_similarity")
        numbers["cross_layer_centred"] = mean_of(found, "attention_similarity_centred")
        series = found.series.get("patch_similarity")
        patches = [v for v in series.values if v is not None] if series else []
        numbers["patch_similarity"] = patches[-1] if patches else None
    return numbers


def described(run: Run) -> dict[str, Any]:
    """What a run is, in the form of ``report.run``: from its records, for reports that do not say it yet."""
    info, result, column = run.info, run.result, tasks.find(run.task).column()
    told: dict[str, Any] = {
        "model": info.get("arch"),
        "arguments": info.get("model_args") or {},
        "data": info.get("data"),
        "epochs": result.get("epochs"),
        "seed": info.get("seed"),
        "results": [{"name": column.title, "value": result[f"val/{column.key}"], "unit": column.unit}],
    }
    card = run.path / "model.json"
    if card.exists():
        told["cures"] = read_json(card, "a deepvit model description").get("cures", [])
    return told


def mean_of(found: Measurements, metric: str) -> float | None:
    """Mean of a metric over the blocks that have it."""
    values = [v for v in found.series[metric].values if v is not None] if metric in found.series else []
    return fmean(values) if values else None


def curves_of(run: Path) -> dict[str, list[list[float]]]:
    """The columns of ``metrics.csv`` over epochs: metric → [[epoch, value], ...]."""
    curves: dict[str, list[list[float]]] = {}
    for row in read_metrics(run):
        for name, value in row.items():
            if value and name not in ("epoch", "step", "val_seconds"):
                curves.setdefault(name, []).append([float(row["epoch"]), float(value)])
    return curves


def spread(values: list[float]) -> dict[str, float | int]:
    """Mean, standard deviation over runs (0 for one run), and how many there are."""
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else 0.0, "runs": len(values)}


def written(value: float | None, digits: int, deviation: float | None = None) -> str:
    """A number for a table; ``±`` only where there is more than one run."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|---:" * (len(headings) - 1) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
