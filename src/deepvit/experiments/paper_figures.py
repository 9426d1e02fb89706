"""The figures that papers on deep ViTs draw, from any study's records: over depth, and over the blocks of the deepest.

The measures are this package's (their formulas stand in ``deepvit.collapse.catalogue``); the papers that introduced
each kind of figure are named in its caption. Nothing of a paper's own curves is drawn.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepvit import tasks
from deepvit.errors import UserError
from deepvit.experiments.figure import COLOURS, MARKS
from deepvit.experiments.profiles import FORMAT, NAME
from deepvit.files import atomic_path, read_json

DEEPVIT = "after DeepViT, arXiv 2103.11886"
DIVERSITY = "after patch diversification, arXiv 2104.12753"
WORTH = "what each block is worth"

Numbers = Callable[[dict[str, Any]], list[float | None]]


@dataclass(frozen=True)
class ByBlock:
    """One measure over the blocks of the deepest network: file name, title, source, and where its numbers are."""

    name: str
    title: str
    source: str
    numbers: Numbers
    line: float | None = None
    log: bool = False


def series(metric: str) -> Numbers:
    """Numbers of a metric by block."""
    return lambda run: run["series"].get(metric, [])


def lesion(kind: str) -> Numbers:
    """Effects of a lesion by block."""
    return lambda run: run["lesions"].get(kind, [])


BY_BLOCK = (
    ByBlock("similarity", "similarity with the block before", DEEPVIT, series("attention_similarity"), 0.9),
    ByBlock("similarity_centred", "the same, centred maps", "this package", series("attention_similarity_centred")),
    ByBlock("heads", "similarity of heads within a block", DEEPVIT, series("head_similarity")),
    ByBlock("features", "similarity of features with the last block's", DEEPVIT, series("feature_similarity")),
    ByBlock("patches", "patch similarity P(h)", DIVERSITY, series("patch_similarity")),
    ByBlock("worth", "KL when the block is taken away, nats", WORTH, lesion("block"), log=True),
    ByBlock("exits", "accuracy when the network ends here, %", WORTH, lambda run: run["score_after"]),
)  # fmt: skip


def draw_paper_figures(study: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draw every figure that a study's records allow, as PNG.

    Args:
        study: a study's folder, or a copy of its ``study.json`` and ``profiles.json``.
        out: where the figures go; by default ``figures`` in that folder.

    Returns:
        the files: ``depth.png`` (the watched figure and similar blocks over depth; only of several depths),
        ``blocks.png`` (measures over the blocks of the deepest network) and ``maps.png`` (one image's attention maps).

    Raises:
        UserError: a file is missing or is something else.
    """
    folder = Path(study)
    for name in ("study.json", NAME):
        if not (folder / name).exists():
            raise UserError(
                f"{folder} has no {name}: give the folder of a study that ended (deepvit study writes it)"
            )
    result = read_json(folder / "study.json", "a study")
    profiles = read_json(folder / NAME, "a study's profiles")
    if profiles.get("format") != FORMAT:
        raise UserError(f"{folder / NAME} is of format {profiles.get('format')!r}, not {FORMAT!r}")
    if not profiles.get("runs"):
        raise UserError(f"{folder} holds no run with a collapse report: nothing to draw")
    try:
        figures = figures_of(result, profiles)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{folder} is damaged ({type(error).__name__}: {error}): deepvit study writes its files anew"
        ) from None
    place = Path(out) if out is not None else folder / "figures"
    written = []
    for name, figure in figures.items():
        with atomic_path(place / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=150)
        written.append(place / f"{name}.png")
    return written


def figures_of(result: dict[str, Any], profiles: dict[str, Any]) -> dict[str, Figure]:
    """The figures by name, from what the two files hold."""
    runs = profiles["runs"]
    figures: dict[str, Figure] = {}
    if len({run["blocks"] for run in runs}) > 1:
        figures["depth"] = over_depth(result, runs)
    figures["blocks"] = over_blocks(runs)
    if profiles["pictures"]:
        figures["maps"] = of_one_image(profiles["pictures"])
    return figures


def over_depth(result: dict[str, Any], runs: list[dict[str, Any]]) -> Figure:
    """The figure that the task watches, and similar blocks, over depth; bars are standard deviations over seeds."""
    watched = tasks.find(result["task"]).column()
    figure = Figure(figsize=(11, 4), layout="constrained")
    merit, similar = figure.subplots(1, 2)
    for index, method in enumerate(methods_of(runs)):
        style = style_of(index, method)
        groups = [g for g in result["groups"] if g["method"] == method and g[watched.key]]
        merit.errorbar(
            [g["depth"] for g in groups], [g[watched.key]["mean"] for g in groups],
            yerr=[g[watched.key]["std"] for g in groups], capsize=3, **style,
        )  # fmt: skip
        own = [run for run in runs if run["method"] == method]
        depths = sorted({run["blocks"] for run in own})
        counts = [[float(len(run["similar"])) for run in own if run["blocks"] == depth] for depth in depths]
        similar.errorbar(
            depths,
            [fmean(c) for c in counts],
            yerr=[deviation(c) for c in counts],
            capsize=3,
            **style,
        )
    merit.set_ylabel(watched.heading)
    similar.set_ylabel("blocks as the block before (≥ 0.9)")
    seeds = len({run["seed"] for run in runs})
    for axes in (merit, similar):
        axes.set_xlabel("blocks")
        axes.set_xticks(sorted({run["blocks"] for run in runs}))
        axes.grid(alpha=0.25)
    merit.set_title(f"{watched.heading}, mean of {seeds} seeds\n({DEEPVIT})", fontsize=9)
    similar.set_title(f"similar blocks\n({DEEPVIT})", fontsize=9)
    merit.legend(frameon=False, fontsize=8)
    return figure


def over_blocks(runs: list[dict[str, Any]]) -> Figure:
    """Every measure over the blocks of the deepest networks: mean over seeds, its standard deviation as a band."""
    deepest = max(run["blocks"] for run in runs)
    shown = [run for run in runs if run["blocks"] == deepest]
    drawn = [m for m in BY_BLOCK if any(v is not None for run in shown for v in m.numbers(run))]
    columns = 3
    rows = -(-(len(drawn) + 1) // columns)
    figure = Figure(figsize=(4.3 * columns, 3.2 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, measure in zip(places, drawn, strict=False):
        draw_by_block(axes, measure, shown)
    handles, labels = places[0].get_legend_handles_labels()
    for axes in places[len(drawn) :]:
        axes.set_axis_off()
    places[len(drawn)].legend(
        handles, labels, loc="center left", frameon=False, title=f"{deepest} blocks, mean over seeds"
    )
    return figure


def draw_by_block(axes: Axes, measure: ByBlock, runs: list[dict[str, Any]]) -> None:
    """One measure, a line a method."""
    for index, method in enumerate(methods_of(runs)):
        lines = [measure.numbers(run) for run in runs if run["method"] == method]
        lines = [line for line in lines if line]
        points = []
        for block in range(max((len(line) for line in lines), default=0)):
            values = [line[block] for line in lines if block < len(line)]
            known = [v for v in values if v is not None]
            if known:
                points.append((block, fmean(known), deviation(known)))
        style = style_of(index, method)
        axes.plot([p[0] for p in points], [p[1] for p in points], markersize=3, **style)
        axes.fill_between(
            [p[0] for p in points], [p[1] - p[2] for p in points], [p[1] + p[2] for p in points],
            color=style["color"], alpha=0.12, linewidth=0,
        )  # fmt: skip
    if measure.line is not None:
        axes.axhline(measure.line, color="#888888", linewidth=0.8, linestyle="--")
    if measure.log:
        axes.set_yscale("symlog", linthresh=1e-2)
        axes.set_ylim(bottom=0)
    axes.set_xlabel("block")
    axes.set_title(f"{measure.title}\n({measure.source})", fontsize=9)
    axes.grid(alpha=0.25)


def of_one_image(pictures: dict[str, dict[str, Any]]) -> Figure:
    """One image's maps, a row a method: what the class token (or the mean query) attends to, mean over heads."""
    rows = [(method, one) for method, one in pictures.items() if one["maps"]]
    columns = 1 + max((len(one["maps"]) for _, one in rows), default=0)
    figure = Figure(figsize=(1.7 * columns, 1.9 * max(1, len(rows))), layout="constrained")
    places = figure.subplots(max(1, len(rows)), columns, squeeze=False)
    for axes in places.flatten():
        axes.set_axis_off()
    for line, (method, one) in zip(places, rows, strict=False):
        line[0].imshow(np.frombuffer(base64.b64decode(one["pixels"]), np.uint8).reshape(one["shape"]))
        line[0].set_title(method, fontsize=9)
        for axes, entry in zip(line[1:], one["maps"], strict=False):
            stored = np.frombuffer(base64.b64decode(entry["data"]), np.uint8).reshape(entry["shape"])
            values = entry["low"] + (entry["high"] - entry["low"]) * stored.astype(np.float64) / 255
            axes.imshow(values.mean(0), cmap="viridis")
            axes.set_title(f"block {entry['block']}", fontsize=8)
    if rows:
        figure.suptitle(
            f"{rows[0][1]['maps'][0]['query']}: attention over the patches, mean over heads, each map in its own colours "
            f"({DEEPVIT})",
            fontsize=9,
        )
    return figure


def methods_of(runs: list[dict[str, Any]]) -> list[str]:
    """The methods in the order in which they were studied."""
    return list(dict.fromkeys(run["method"] for run in runs))


def style_of(index: int, method: str) -> dict[str, Any]:
    """Colour, mark and name of a method's line."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKS[index % len(MARKS)],
        "linestyle": "-" if index < len(COLOURS) else "--",
        "label": method,
    }


def deviation(values: list[float]) -> float:
    """Standard deviation over seeds; 0 of one."""
    return stdev(values) if len(values) > 1 else 0.0
