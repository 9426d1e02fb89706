"""What each block is worth, for the page: the strip, the charts and the columns of the table that lesions make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deepvit.collapse.lesions.catalogue import LESIONS
from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.lesions.lines import IDLE, scale
from deepvit.collapse.results import Measurements
from deepvit.report.lesion_words import UNITS

STRIP_ROWS = {
    "block": "block removed",
    "attention": "its attention removed",
    "map_reuse": "map of the block before",
    "patch_mean": "patches made equal after it",
}
"""The rows of the strip of lesions: key → its short name."""
DRAWN = ("block", "attention", "map_reuse", "map_mean", "patch_mean")
HINT = (
    "How far the answer moves when this is done to one block. Empty: the network does not need it. "
    "One cell a block, from the input on the left to the output on the right."
)


def with_lesions(result: Measurements) -> Lesions | None:
    """The lesions of a result, where there are any to show."""
    found = result.lesions
    return found if found is not None and not found.failed and found.effects else None


def worth_strip(result: Measurements, name: str, spoken: Sequence[int]) -> dict[str, Any] | None:
    """The strip "what each block is worth"; None without lesions. Colour is logarithmic from the line of idle blocks on."""
    found = with_lesions(result)
    if found is None:
        return None
    indices = [block.index for block in result.blocks]
    rows = []
    most = max((e.value for e in found.effects if e.lesion in STRIP_ROWS), default=1.0)
    for key, words in STRIP_ROWS.items():
        effects = found.single(key)
        if effects:
            values = [effects[i].value if i in effects else None for i in indices]
            shades = [None if v is None else shade(v, found, most) for v in values]
            rows.append({"name": words, "values": [_rounded(v) for v in values], "shades": shades})
    if not rows:
        return None
    return {
        "title": f"{name}: what each block is worth, from the first to the last",
        "blocks": [str(index) for index in indices],
        "indices": indices,
        "rows": rows,
        "from": indices.index(spoken[0]) if spoken and spoken[0] in indices else None,
        "to": indices.index(spoken[-1]) if spoken and spoken[-1] in indices else None,
        "marked": [indices.index(index) for index in spoken if index in indices],
        "low": 0.0,
        "ends": ["not needed", f"moves the answer by {_short(most)} {UNITS[found.measure]}"],
        "hint": HINT,
    }


def shade(value: float, found: Lesions, most: float) -> float:
    """0 (up to the line of idle blocks) to 1 (the most that any lesion does), logarithmic between."""
    line = IDLE * scale(found)
    if value <= line:
        return 0.0
    if most <= line or line <= 0:  # no lesion is told from nothing, or nothing is the scale of the answer
        return 1.0
    return round(0.15 + 0.85 * min(1.0, math.log(value / line) / math.log(most / line)), 4)


def lesion_series(result: Measurements) -> dict[str, Any]:
    """What the charts draw: "lesion:block" and so on, and "exit:…", per block."""
    found = with_lesions(result)
    if found is None:
        return {}
    indices = [block.index for block in result.blocks]
    series = {}
    for key in DRAWN:
        effects = found.single(key)
        if effects:
            series[f"lesion:{key}"] = _series([_value(effects.get(i)) for i in indices])
    exits = found.single("exit")
    if exits:
        kind = exit_kind(found)
        values = [_exit_value(exits.get(i), kind) for i in indices]
        last = indices[-1]
        if last not in exits:  # the network itself
            values[-1] = {"score": found.score, "stay": 100.0, "moved": 0.0}[kind]
        series[f"exit:{kind}"] = _series(values)
    return series


def exit_kind(found: Lesions) -> str:
    """What an exit curve is drawn of: "score" with labels, "stay" (answers that stay, %), or "moved"."""
    if found.score is not None:
        return "score"
    return "stay" if found.measure != "cosine" else "moved"


def lesion_charts(results: Sequence[Measurements]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Charts as (what the script reads, title, unit and reading line); the exit curve first."""
    charts: list[tuple[dict[str, Any], dict[str, str]]] = []
    known = [found for result in results if (found := with_lesions(result)) is not None]
    if not known:
        return []
    unit = UNITS[known[0].measure]
    for kind in dict.fromkeys(exit_kind(found) for found in known if found.single("exit")):
        name = (
            next(found.score_name for found in known if exit_kind(found) == kind) if kind == "score" else ""
        )
        titles = {
            "score": (f"{name[:1].upper()}{name[1:]} if the network ended here", "%"),
            "stay": ("Answers that stay if the network ended here", "%"),
            "moved": ("How far the output is off if the network ended here", unit),
        }
        read = (
            "Final norm and head as they are, put behind each block. Where the line is flat, depth has stopped paying; "
            "where it rises to the end, every block is used."
        )
        payload, words = _chart([f"exit:{kind}"], [titles[kind][0]], *titles[kind], read)
        payload["floor"] = kind == "moved"  # accuracies of neighbouring blocks lie close together
        charts.append((payload, words))
    one = len(results) == 1
    line = [{"value": IDLE * scale(known[0]), "label": "idle below"}] if one else []
    keys = [key for key in DRAWN if any(found.single(key) for found in known)]
    groups = (
        [("block", "attention"), ("map_reuse", "map_mean"), ("patch_mean",)]
        if one
        else [(key,) for key in keys]
    )
    for group in groups:
        here = [key for key in group if key in keys]
        if here:
            title = _TITLES.get(here[0], LESIONS[here[0]].title) if one else LESIONS[here[0]].title
            read = " ".join(f"{LESIONS[key].question} {_capital(LESIONS[key].done)}." for key in here)
            names = [LESIONS[key].title for key in here]
            payload, words = _chart([f"lesion:{key}" for key in here], names, title, unit, read)
            payload["thresholds"] = line
            charts.append((payload, words))
    return charts


_TITLES = {"block": "Block or its attention removed", "map_reuse": "Another map in place of its own"}


def lesion_columns(results: Sequence[Measurements]) -> list[dict[str, Any]]:
    """Columns of the table of all numbers: heading, definition, and a function from (result, place) to a cell."""
    known = [found for result in results if (found := with_lesions(result)) is not None]
    columns = []
    for key, kind in LESIONS.items():
        if any(found.single(key) for found in known):
            unit = UNITS[known[0].measure]
            formula = f"{kind.done}: how far the answer moves, {unit}"
            columns.append({"key": key, "title": kind.title, "formula": formula, "part": "value"})
    if any(e.score is not None for found in known for e in found.single("exit").values()):
        name = next(found.score_name for found in known if found.score_name)
        for key in ("block", "exit"):
            title = f"{name[:1].upper()}{name[1:]}, {LESIONS[key].title.lower()}"
            columns.append(
                {"key": key, "title": title, "formula": f"{LESIONS[key].done}; %", "part": "score"}
            )
    return columns


def cell_of(result: Measurements, place: int, column: dict[str, Any]) -> tuple[float | None, float | None]:
    """A column's number and its spread in one block."""
    found = with_lesions(result)
    effect = None if found is None else found.single(column["key"]).get(result.blocks[place].index)
    if effect is None:
        return None, None
    return (effect.value, effect.spread) if column["part"] == "value" else (effect.score, None)


def _chart(
    keys: list[str], names: list[str], title: str, unit: str, read: str
) -> tuple[dict[str, Any], dict[str, str]]:
    payload = {
        "title": title, "keys": keys, "names": names, "unit": unit, "range": None, "floor": True, "thresholds": [],
    }  # fmt: skip
    return payload, {"title": title, "unit": unit, "read": read}


def _series(values: Sequence[float | None]) -> dict[str, Any]:
    return {"values": [_rounded(v) for v in values], "low": None, "high": None, "heads": None}


def _value(effect: Effect | None) -> float | None:
    return None if effect is None else effect.value


def _exit_value(effect: Effect | None, kind: str) -> float | None:
    if effect is None:
        return None
    if kind == "stay":
        return None if effect.changed is None else 100 * (1 - effect.changed)
    return effect.score if kind == "score" else effect.value


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
