"""What every run of a study measured, block by block, in one small file: what its figures are drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepvit.collapse.results import ImageMaps, Measurements
from deepvit.experiments.rows import measurements
from deepvit.files import write_json

NAME = "profiles.json"
FORMAT = "deepvit-profiles/1"
SHOWN = 5
"""Blocks whose maps are kept, evenly spaced from the first to the last."""
_DIGITS = 5  # significant, of every number


def write_profiles(result: dict[str, Any], out: Path) -> Path:
    """Write ``profiles.json`` of a study into ``out``, from the reports of its runs.

    It holds, for each run that has a collapse report, every measure by block and the effect of every lesion of one
    block, and, for the first seed of each method at the largest depth, one image's maps in :data:`SHOWN` blocks.

    Args:
        result: what ``study.json`` holds.
        out: the study's folder, with ``runs/``.
    """
    deepest = max((run["depth"] or 0 for run in result["runs"]), default=0) or None
    entries, pictures = [], {}
    for run in result["runs"]:
        found = None if "diverged" in run else measurements(out / "runs" / run["run"])
        if found is None:
            continue
        entries.append(profile(run, found))
        first = run["seed"] == result["seeds"][0] and run["depth"] == deepest
        if first and found.maps:
            pictures[run["method"]] = picture(found.maps[0])
    return write_json(out / NAME, {"format": FORMAT, "runs": entries, "pictures": pictures})


def profile(run: dict[str, Any], found: Measurements) -> dict[str, Any]:
    """One run: which it is, and its measures by block (numbers that do not exist are None)."""
    blocks = len(found.blocks)
    lesions: dict[str, list[float | None]] = {}
    exits: list[float | None] = []
    if found.lesions is not None and not found.lesions.failed:
        for lesion in dict.fromkeys(effect.lesion for effect in found.lesions.effects):
            single = found.lesions.single(lesion)
            if single:
                lesions[lesion] = [rounded(single[b].value) if b in single else None for b in range(blocks)]
        ended = found.lesions.single("exit")
        exits = [rounded(ended[b].score) if b in ended else None for b in range(blocks)]
    return {
        **{name: run[name] for name in ("method", "depth", "seed")},
        "blocks": blocks,
        "similar": found.similar.blocks,
        "series": {name: [rounded(v) for v in series.values] for name, series in found.series.items()},
        "lesions": lesions,
        "score_after": exits if any(v is not None for v in exits) else [],
    }


def picture(image: ImageMaps) -> dict[str, Any]:
    """One image and what its class token (or else the mean query) attends to in some blocks."""
    first = image.maps[0].query if image.maps else ""
    asked = [entry for entry in image.maps if entry.query == first]
    last = max(1, len(asked) - 1)
    chosen = sorted({round(step * last / (SHOWN - 1)) for step in range(SHOWN)}) if asked else []
    return {
        "shape": image.shape,
        "pixels": image.pixels,
        "maps": [
            {name: getattr(asked[i], name) for name in ("block", "query", "shape", "low", "high", "data")}
            for i in chosen
            if i < len(asked)
        ],
    }


def rounded(value: float | None) -> float | None:
    """To five significant digits: a record that people read and compare, not a checkpoint."""
    return None if value is None else float(f"{value:.{_DIGITS}g}")
