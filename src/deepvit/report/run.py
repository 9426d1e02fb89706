"""What a network is and how it was trained, as whoever trained it describes it in ``provenance["run"]``.

The description is a mapping; every entry may be missing::

    {"model": "vit_tiny_patch16_224", "arguments": {"depth": 16},
     "cures": [{"name": "reattention", "blocks": "8-15"}], "losses": {"patch_cosine": 1.0},
     "data": "digits", "images": 1437, "epochs": 20, "batch": 64, "seed": 0, "weights": "ema, best epoch",
     "results": [{"name": "top-1 accuracy", "value": 97.2, "unit": "%"}],
     "curves": [{"name": "top-1 accuracy", "unit": "%", "x": "epoch", "points": [[1, 50.0], [2, 71.5]]}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepvit.collapse.remedies import block_range
from deepvit.report.page import number


def run_facts(run: Mapping[str, Any] | None) -> dict[str, str]:
    """Name → words, in the order of a header; what the description does not say is left out."""
    run = run or {}
    facts: dict[str, str] = {}
    if run.get("model"):
        arguments = ", ".join(f"{key} {value}" for key, value in (run.get("arguments") or {}).items())
        facts["Model"] = run["model"] + (f" ({arguments})" if arguments else "")
    if "cures" in run:
        facts["Cures"] = ", ".join(map(_cure, run["cures"] or ())) or "none"
    if "losses" in run:
        facts["Losses"] = (
            ", ".join(f"{name} × {_n(weight)}" for name, weight in (run["losses"] or {}).items()) or "none"
        )
    if run.get("data"):
        images = run.get("images")
        facts["Data"] = run["data"] + (f", {images:,} training images" if images else "")
    if "epochs" in run:
        parts = [f"{run['epochs']} epoch{'' if run['epochs'] == 1 else 's'}"]
        parts += [f"{run['batch']} images a step"] if run.get("batch") else []
        parts += [f"seed {run['seed']}"] if run.get("seed") is not None else []
        parts += [f"weights: {run['weights']}"] if run.get("weights") else []
        facts["Trained"] = ", ".join(parts)
    if run.get("results"):
        facts["Reached"] = ", ".join(f"{each['name']} {with_unit(each)}" for each in run["results"])
    return facts


def with_unit(result: Mapping[str, Any]) -> str:
    """ "97.2%", "0.31", "12.5 s"."""
    unit = result.get("unit") or ""
    return _n(result["value"]) + (unit if unit in ("", "%") else f" {unit}")


def run_curves(run: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The curves of a run, each name once and no line twice, as charts of one line."""
    charts: list[dict[str, Any]] = []
    for curve in (run or {}).get("curves") or ():
        points = sorted((float(x), float(y)) for x, y in curve["points"])
        finite = [(x, y if abs(y) < float("inf") else None) for x, y in points]
        known = {chart["title"] for chart in charts}
        if finite and curve["name"] not in known:
            charts.append(
                {
                    "title": curve["name"],
                    "unit": curve.get("unit") or "",
                    "xName": curve.get("x") or "epoch",
                    "series": [
                        {
                            "name": curve["name"],
                            "color": 0,
                            "dash": 0,
                            "x": [x for x, _ in finite],
                            "y": [None if y is None else float(f"{y:.5g}") for _, y in finite],
                        }
                    ],
                }
            )
    return charts


def _cure(cure: Any) -> str:
    if isinstance(cure, str):
        return cure
    blocks = cure.get("blocks")
    if isinstance(blocks, list | tuple):
        blocks = block_range(blocks, blocks)
    return str(cure["name"]) + ("" if blocks in (None, "", "all") else f" in blocks {blocks}")


def _n(value: Any) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return number(value) if isinstance(value, int | float) else str(value)
