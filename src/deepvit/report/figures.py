"""Figures for papers and READMEs: depth profiles, matrices, attention maps as a film strip.

matplotlib's objects are used without pyplot: nothing global is set, no window system is asked for, and a
training loop that draws its own figures is not disturbed. The suffix of the path chooses the format.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepvit.collapse.catalogue import METRICS
from deepvit.collapse.results import BlockMap, ImageMaps, Measurements
from deepvit.errors import UserError
from deepvit.files import atomic_path
from deepvit.report import charts, palette

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#66737f",
    "axes.labelcolor": "#465361",
    "xtick.color": "#66737f",
    "ytick.color": "#66737f",
    "axes.grid": True,
    "grid.color": "#e3e8ed",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "deepvit",  # the same numbers give the same file
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.2)), "-.", (0, (8, 2, 2, 2)), (0, (3, 3)))


def depth_profile(
    results: Mapping[str, Measurements],
    path: str | os.PathLike[str],
    metric: str = "attention_similarity",
) -> Path:
    """Draw one metric over the blocks of several models, a line a model; returns the path.

    ``metric`` is a key of ``catalogue.METRICS``. Bands are one standard deviation over images. Raises
    UserError for an unknown metric, or when no model has it.
    """
    if metric not in METRICS:
        raise UserError(f"no metric {metric!r}; there are {', '.join(METRICS)}")
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        _profile(figure.add_subplot(), results, metric)
        return _save(figure, path)


def overview(results: Mapping[str, Measurements], path: str | os.PathLike[str]) -> Path:
    """Draw collapse at a glance: the depth profile of all models, beside it each one's similarity matrix."""
    names = list(results)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4 + 2.7 * len(names), 3.1), layout="constrained")
        axes = figure.subplots(1, 1 + len(names), width_ratios=[1.75, *([1.0] * len(names))])
        _profile(axes[0], results, "attention_similarity")
        _matrices(figure, list(axes[1:]), results, "attention_similarity")
        return _save(figure, path)


def matrix_row(
    results: Mapping[str, Measurements], path: str | os.PathLike[str], key: str = "attention_similarity"
) -> Path:
    """Draw several models' matrices of all pairs of blocks side by side, on one colour scale."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(0.9 + 2.7 * len(results), 2.9), layout="constrained")
        axes = figure.subplots(1, len(results), squeeze=False)[0]
        _matrices(figure, list(axes), results, key)
        return _save(figure, path)


def film_strip(
    results: Mapping[str, Measurements], path: str | os.PathLike[str], image: int = 0, columns: int = 16
) -> Path:
    """Draw what one query attends to in every block of every model, over one image, mean of the heads.

    Where attention has collapsed the frames repeat. Raises UserError when a model has no such image.
    """
    for name, result in results.items():
        if image >= len(result.maps) or not result.maps[image].maps:
            raise UserError(f"{name} has no maps of image {image}: diagnose it with its maps kept")
    frames = {name: _frames(result.maps[image]) for name, result in results.items()}
    rows = {name: -(-len(entries) // columns) for name, entries in frames.items()}
    with matplotlib.rc_context(_STYLE):
        width = min(columns, max(len(entries) for entries in frames.values()))
        figure = Figure(
            figsize=(0.72 * width, 0.92 * sum(rows.values()) + 0.3 * len(rows)), layout="constrained"
        )
        for part, (name, entries) in zip(
            np.atleast_1d(figure.subfigures(len(rows), 1, height_ratios=list(rows.values()))),  # type: ignore[arg-type]
            frames.items(),
            strict=True,
        ):
            picture = _gray(results[name].maps[image])
            part.suptitle(f"{name}: {entries[0].query}", fontsize=9.5, fontweight="bold", x=0.01, ha="left")
            axes = part.subplots(rows[name], width, squeeze=False).ravel()
            for axis in axes:
                axis.set_axis_off()
            for axis, entry in zip(axes, entries, strict=False):
                _overlay(axis, picture, entry)
                axis.set_title(str(entry.block), fontsize=7, fontweight="normal", loc="center", pad=2)
        return _save(figure, path)


def write_figures(results: Measurements, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every profile, matrix and the film strip of the first image as PNG and SVG into ``folder``."""
    by_name = {results.name: results}
    written = []
    for suffix in (".png", ".svg"):
        for metric in charts.shown_metrics([results]):
            written.append(depth_profile(by_name, Path(folder) / f"profile-{metric}{suffix}", metric))
        for key in results.matrices:
            written.append(matrix_row(by_name, Path(folder) / f"matrix-{key}{suffix}", key))
        if results.maps and results.maps[0].maps:
            written.append(film_strip(by_name, Path(folder) / f"maps{suffix}"))
    return written


def _profile(axis: Axes, results: Mapping[str, Measurements], metric: str) -> None:
    drawn = 0
    for place, (name, result) in enumerate(results.items()):
        series = result.series.get(metric)
        if series is None or all(value is None for value in series.values):
            continue
        x = np.array([block.index for block in result.blocks], dtype=float)
        y = np.array([np.nan if value is None else value for value in series.values], dtype=float)
        width = np.array([np.nan if value is None else value for value in series.spread], dtype=float)
        color = palette.SERIES_LIGHT[place % len(palette.SERIES_LIGHT)]
        axis.fill_between(x, y - width, y + width, color=color, alpha=0.15, linewidth=0)
        axis.plot(
            x,
            y,
            color=color,
            linestyle=_DASHES[place % len(_DASHES)],
            marker="o",
            markersize=3,
            linewidth=1.7,
            label=name,
        )
        drawn += 1
    if not drawn:
        raise UserError(f"none of these models was measured for {metric!r}")
    for line in charts.thresholds([metric], list(results.values())):
        axis.axhline(line["value"], color="#b3381c", linewidth=1, linestyle=(0, (4, 3)))
        axis.annotate(
            line["label"], (0.01, line["value"]), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", color="#b3381c", fontsize=7.5,
        )  # fmt: skip
    info = METRICS[metric]
    if info.high == 1.0 and info.alarm != "none":
        axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.03)
    else:
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="block", ylabel=info.unit, title=charts.metric_title(metric))
    if len(results) > 1:
        axis.legend(fontsize=8)


def _matrices(figure: Figure, axes: list[Axes], results: Mapping[str, Measurements], key: str) -> None:
    values = {}
    for name, result in results.items():
        if key not in result.matrices:
            raise UserError(f"{name} has no matrix {key!r}; it has {', '.join(result.matrices) or 'none'}")
        values[name] = np.array(
            [[np.nan if value is None else value for value in row] for row in result.matrices[key]],
            dtype=float,
        )
    # Zero is the paper's own colour on the whole ramp, so a scale without negatives is its upper half.
    low = -1.0 if min(np.nanmin(matrix) for matrix in values.values()) < -0.02 else 0.0
    if key == "cka" and low == 0:
        low = charts.scale_start(list(results.values()), key)
    ramp = palette.ramp("light")
    colors = ListedColormap([ramp[step] for step in sorted(ramp) if low < 0 or step >= 0]).with_extremes(
        bad="#dfe5ea"
    )
    for axis, (name, matrix) in zip(axes, values.items(), strict=True):
        drawn = axis.imshow(matrix, cmap=colors, vmin=low, vmax=1.0, interpolation="nearest")
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set(title=name, xlabel="block")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(drawn, ax=axes[-1], shrink=0.85, aspect=22)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label("similarity" if key != "cka" else "CKA")


def _frames(image: ImageMaps) -> list[BlockMap]:
    """One map a block: of the class token where there is one."""
    first = image.maps[0].query
    chosen: dict[int, BlockMap] = {}
    for entry in image.maps:
        if entry.block not in chosen or entry.query == first:
            chosen[entry.block] = entry
    return [chosen[block] for block in sorted(chosen)]


def _gray(image: ImageMaps) -> np.ndarray[Any, Any]:
    pixels = np.frombuffer(image.bytes(), np.uint8).reshape(image.shape) / 255
    return np.asarray(0.5 * (pixels @ np.array([0.299, 0.587, 0.114])))


def _overlay(axis: Axes, picture: np.ndarray[Any, Any], entry: BlockMap) -> None:
    raw = np.frombuffer(entry.bytes(), np.uint8).reshape(entry.shape).astype(float)
    map_RC = (entry.low + (entry.high - entry.low) * raw / 255).mean(0)
    share = map_RC / max(np.abs(map_RC).max(), 1e-12)
    ramp = palette.ramp("dark")
    colors = ListedColormap([ramp[step] for step in sorted(ramp)])
    height, width = picture.shape
    extent = (0, width, height, 0)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=extent)
    axis.imshow(
        share,
        cmap=colors,
        vmin=-1,
        vmax=1,
        alpha=0.3 + 0.62 * np.abs(share),
        extent=extent,
        interpolation="nearest",
    )


def _save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{path}: figures are written as .png, .svg or .pdf")
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None} if suffix == ".svg" else None)
    return Path(path)
