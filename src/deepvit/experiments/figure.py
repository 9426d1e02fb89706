"""The figure of a study: what the task watches, by method (over depth where there are several), and similarity by block.

``python -m deepvit.experiments.figure records/*/study.json`` draws the figures of records anew, from that file and
the profiles.json beside it, where there is one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deepvit import tasks
from deepvit.experiments.profiles import NAME
from deepvit.experiments.rows import measurements
from deepvit.files import atomic_path, read_json
from deepvit.tasks import Column

# Okabe and Ito's colours, which people with any colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
MARKS = "osD^vP*X"
MOST_LINES = len(COLOURS)
"""More methods than that are rows of a map instead of lines."""


def draw_study(result: dict[str, Any], out: Path, suffixes: tuple[str, ...] = ("png", "svg")) -> None:
    """Write ``figure.png`` and ``figure.svg`` into ``out``; a study without any finished run gives none."""
    watched = tasks.find(result.get("task", tasks.DEFAULT)).column()
    groups = [g for g in result["groups"] if g[watched.key] is not None]
    if not groups:
        return
    methods = list(dict.fromkeys(g["method"] for g in groups))
    figure = Figure(figsize=(10, 4 + 0.12 * max(0, len(methods) - 6)), layout="constrained")
    merit, similarity = figure.subplots(1, 2)
    draw_figure_of_merit(merit, groups, methods, watched)
    curves = similarity_curves(result, methods, out)
    if not curves:
        draw_mean_similarity(similarity, groups, methods)
    elif len(methods) > MOST_LINES:
        draw_similarity_map(similarity, curves, methods)
    else:
        draw_similarity(similarity, curves)
    for suffix in suffixes:
        with atomic_path(out / f"figure.{suffix}") as temporary:
            figure.savefig(temporary, dpi=160)


def draw_figure_of_merit(
    axes: Axes, groups: list[dict[str, Any]], methods: list[str], watched: Column
) -> None:
    """What the task watches over depth as lines, or one mark a method; bars are the standard deviation over seeds."""
    several = len({g["depth"] for g in groups}) > 1
    for index, method in enumerate(methods):
        own = [g for g in groups if g["method"] == method]
        many = (
            len(methods) > MOST_LINES and not several
        )  # the names are on the axis; eight colours would come twice
        style: dict[str, Any] = {
            "color": COLOURS[0 if many else index % 8],
            "marker": MARKS[0 if many else index % 8],
            "capsize": 3,
            "label": method,
        }
        means, deviations = [g[watched.key]["mean"] for g in own], [g[watched.key]["std"] for g in own]
        if several:
            axes.errorbar([g["depth"] for g in own], means, yerr=deviations, **style)
        else:
            axes.errorbar(means, [index], xerr=deviations, linestyle="none", **style)
    if several:
        axes.set_xlabel("blocks")
        axes.set_ylabel(watched.heading)
        axes.set_xticks(sorted({g["depth"] for g in groups}))
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_xlabel(watched.heading)
    runs = max(g[watched.key]["runs"] for g in groups)
    axes.set_title(
        f"{watched.heading}, mean of {runs} seeds" if runs > 1 else f"{watched.heading} of one seed",
        fontsize=10,
    )
    axes.grid(alpha=0.25)


def similarity_curves(result: dict[str, Any], methods: list[str], out: Path) -> dict[str, list[float | None]]:
    """Method → similarity of each block's maps with the block before, of the first seed at the largest depth."""
    deepest = max((g["depth"] or 0) for g in result["groups"]) or None
    kept: dict[tuple[Any, ...], list[float | None]] = {}
    if (out / NAME).exists():  # a record has no reports of its runs, but what they measured
        for run in read_json(out / NAME, "the profiles of a study")["runs"]:
            kept[run["method"], run["depth"], run["seed"]] = run["series"].get("attention_similarity")
    curves: dict[str, list[float | None]] = {}
    for method in methods:
        runs = [
            r
            for r in result["runs"]
            if r["method"] == method
            and r["depth"] == deepest
            and r["seed"] == result["seeds"][0]
            and "diverged" not in r
        ]
        if not runs:
            continue
        found = measurements(out / "runs" / runs[0]["run"])
        values = kept.get((method, deepest, runs[0]["seed"]))
        if found is not None and "attention_similarity" in found.series:
            values = found.series["attention_similarity"].values
        if values:
            curves[method] = list(values)
    return curves


def draw_mean_similarity(axes: Axes, groups: list[dict[str, Any]], methods: list[str]) -> None:
    """Of records that keep no profile of a run: its mean over the blocks, by method; bars are the deviation over seeds."""
    for index, method in enumerate(methods):
        found = [g["cross_layer"] for g in groups if g["method"] == method and g["cross_layer"]]
        if found:
            axes.errorbar(
                [found[-1]["mean"]], [index], xerr=[found[-1]["std"]], linestyle="none", color=COLOURS[0], marker="o",
                capsize=3,
            )  # fmt: skip
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlim(-0.25, 1.05)
    axes.set_xlabel("cosine, mean over the blocks")
    axes.set_title("attention similarity with the block before", fontsize=10)
    axes.grid(alpha=0.25)


def draw_similarity(axes: Axes, curves: dict[str, list[float | None]]) -> None:
    """One line a method, the first seed's."""
    for index, (method, values) in enumerate(curves.items()):
        points = [(i, v) for i, v in enumerate(values) if v is not None]
        axes.plot(
            [i for i, _ in points], [v for _, v in points], color=COLOURS[index], marker=MARKS[index],
            markersize=4, label=method,
        )  # fmt: skip
    axes.axhline(0.9, color="#888888", linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.25, 1.05)
    axes.set_xlabel("block")
    axes.set_title("attention similarity with the block before (0.9: similar)", fontsize=10)
    axes.grid(alpha=0.25)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)


def draw_similarity_map(axes: Axes, curves: dict[str, list[float | None]], methods: list[str]) -> None:
    """One row a method, in the order of the accuracies beside it; networks of any depth are drawn equally long."""
    for index, method in enumerate(methods):
        values = [v for v in curves.get(method, []) if v is not None]
        if values:
            image = axes.imshow(
                [values],
                extent=(0, 1, index + 0.45, index - 0.45),
                aspect="auto",
                cmap="RdBu_r",
                vmin=-1,
                vmax=1,
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xticks([0, 1], ["first blocks", "last blocks"])
    axes.set_title("attention similarity with the block before, first seed", fontsize=10)
    if curves:
        axes.figure.colorbar(image, ax=axes, fraction=0.05)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw_study(read_json(Path(name), "a study"), Path(name).parent, ("png",))
