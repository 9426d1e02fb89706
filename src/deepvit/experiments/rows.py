"""A run as one row of a table: the figure that its task watches, collapse, cost."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean, stdev

from deepvit import tasks
from deepvit.collapse.results import Measurements
from deepvit.report import load
from deepvit.runs import Run

# column → (heading, digits after the point); the order of every table, behind the figure that the task watches
MEASURED: dict[str, tuple[str, int]] = {
    "similar_blocks": ("similar blocks", 1),
    "cross_layer": ("cross-layer similarity", 3),
    "cross_layer_centred": ("same, centred maps", 3),
    "patch_similarity": ("patch similarity, last block", 3),
    "seconds_per_epoch": ("s an epoch", 2),
    "parameters": ("parameters (M)", 3),
}


def columns_of(task: str) -> dict[str, tuple[str, int]]:
    """The columns of a table of runs of one task: column → (heading, digits)."""
    watched = tasks.find(task).column()
    return {watched.key: (watched.heading, watched.digits), **MEASURED}


def measurements(run: Path) -> Measurements | None:
    """The collapse report of a run folder, or None where it has none.

    Raises:
        UserError: the file is damaged or of another version.
    """
    return load(run) if (run / "collapse.json").exists() else None


def row_of(run: Run) -> dict[str, float | None]:
    """The numbers of one run, by the names of ``columns_of``; None where the network has no collapse report."""
    found = measurements(run.path)
    result, watched = run.result, tasks.find(run.task).watch
    row: dict[str, float | None] = {
        watched: result[f"val/{watched}"],
        "similar_blocks": None,
        "cross_layer": None,
        "cross_layer_centred": None,
        "patch_similarity": None,
        "seconds_per_epoch": result["seconds_per_epoch"],
        "parameters": result["parameters"] / 1e6,
    }
    if found is not None:
        row["similar_blocks"] = float(len(found.similar.blocks))
        row["cross_layer"] = mean_of(found, "attention_similarity")
        row["cross_layer_centred"] = mean_of(found, "attention_similarity_centred")
        patches = [v for v in found.series["patch_similarity"].values if v is not None]
        row["patch_similarity"] = patches[-1] if patches else None
    return row


def mean_of(found: Measurements, metric: str) -> float | None:
    """Mean of a metric over the blocks that have it."""
    values = [v for v in found.series[metric].values if v is not None] if metric in found.series else []
    return fmean(values) if values else None


def curves_of(run: Path) -> dict[str, list[list[float]]]:
    """The columns of ``metrics.csv`` over epochs: metric → [[epoch, value], ...]."""
    path = run / "metrics.csv"
    curves: dict[str, list[list[float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
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
