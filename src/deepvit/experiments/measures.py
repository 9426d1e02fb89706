"""Every measure of a study's runs, early and at the end, and how each goes with the accuracy: measures.csv, measures.md."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from deepvit.collapse.lesions.catalogue import LESIONS
from deepvit.collapse.lesions.effects import Lesions
from deepvit.collapse.lesions.lines import is_idle
from deepvit.collapse.lesions.together import earliest_exit
from deepvit.collapse.results import Measurements
from deepvit.experiments.relating import ALPHA, END, FEWEST, Measured, Relation, gains_of_cures, relations
from deepvit.experiments.rows import markdown
from deepvit.files import write_atomic
from deepvit.report import load
from deepvit.runs.folder import UNDERWAY, read_metrics

EARLY = "validation accuracy"
"""Name of the accuracy on all validation images after the first epoch, among the measures."""
FIRST = "epoch 1"
"""When ``EARLY`` is taken: no share of training, and never the end."""


def numbers_of(found: Measurements) -> dict[str, float]:
    """Every measure of a network as one number: of metrics the mean over blocks and the last."""
    numbers: dict[str, float] = {}
    for key, series in found.series.items():
        values = [value for value in series.values if value is not None]
        if values:
            numbers |= {f"{key}, mean": fmean(values), f"{key}, last": values[-1]}
    numbers["similar blocks"] = float(len(found.similar.blocks))
    if found.lesions is not None and not found.lesions.failed:
        numbers |= numbers_of_lesions(found.lesions, len(found.blocks))
    return numbers


def numbers_of_lesions(found: Lesions, depth: int) -> dict[str, float]:
    """Of each lesion the mean effect over blocks and the share of idle ones; the earliest end; what answers tell apart."""
    numbers: dict[str, float] = {}
    for key in LESIONS:
        effects = list(found.single(key).values())
        if effects:
            numbers[f"lesion {key}, mean"] = fmean(effect.value for effect in effects)
            idle = [is_idle(found, effect) for effect in effects]
            numbers[f"lesion {key}, idle share"] = sum(idle) / len(idle)
    if found.single("exit"):
        end = earliest_exit(found)
        numbers["earliest end, share of depth"] = ((end.blocks[0] + 1) if end else depth) / depth
    numbers["answers told apart"] = found.told_apart
    if found.score is not None:
        numbers[f"{found.score_name} now"] = found.score
    return numbers


def measured_run(folder: Path, entry: Mapping[str, Any], watch: str) -> Measured | None:
    """One run of a study with all its measures; None where it diverged."""
    result = entry.get(watch)
    if result is None:
        return None
    places = {path.name: path for path in sorted((folder / UNDERWAY).glob("*")) if path.is_dir()}
    places |= {END: folder}
    values: dict[tuple[str, str], float] = {}
    for when, place in places.items():
        if (place / "collapse.json").exists():
            values |= {(when, name): value for name, value in numbers_of(load(place)).items()}
    rows = read_metrics(folder)
    early = float(rows[0][f"val/{watch}"]) if rows and rows[0].get(f"val/{watch}") else None
    if early is not None and len(rows) > 1:  # of a run of one epoch it is the result itself
        values[FIRST, EARLY] = early
    return Measured((str(entry["method"]), entry["depth"]), int(entry["seed"]), float(result), early, values)


def write_measures(entries: Iterable[Mapping[str, Any]], out: Path, watch: str, title: str) -> list[Path]:
    """Write ``measures.csv`` and ``measures.md`` of a study's runs, where it has configurations enough.

    Returns:
        the files; none with fewer than ``FEWEST`` configurations.
    """
    entries = list(entries)
    runs = [
        run
        for entry in entries
        if (run := measured_run(out / "runs" / str(entry["run"]), entry, watch)) is not None
    ]
    if len({run.key for run in runs}) < FEWEST:
        return []
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["method", "depth", "seed", watch, "when", "measure", "value"])
    for run in runs:
        depth = "" if run.key[1] is None else run.key[1]
        for (when, name), value in run.values.items():
            writer.writerow([run.key[0], depth, run.seed, run.result, when, name, f"{value:.6g}"])
    write_atomic(out / "measures.csv", text.getvalue())
    write_atomic(out / "measures.md", report(runs, len(entries) - len(runs), watch, title))
    return [out / "measures.csv", out / "measures.md"]


def report(runs: list[Measured], diverged: int, watch: str, title: str) -> str:
    """What ``measures.md`` says."""
    table = relations(runs)
    seeds, keys = len({run.seed for run in runs}), len({run.key for run in runs})
    predicting = [one for one in table if one.predicts]
    lines = [
        f"# {title}: which measures go with {watch} at the end",
        "",
        f"{len(runs)} runs ({keys} configurations, {seeds} seed{'s' * (seeds > 1)}; {diverged} diverged and are left out); "
        f"{len(table)} comparisons. Spearman's rank correlation over configurations (means over seeds); p is two-sided, "
        f'after Holm\'s correction over all {len(table)} comparisons. "Beyond early": partial correlation given the {watch} '
        f"after the first epoch. A measure predicts when it is taken before the end, p after Holm is below {ALPHA:g}, and "
        "every seed by itself has the same sign.",
        "",
        _conclusion(predicting),
        "",
        markdown(*_rows(table)),
    ]
    gains = gains_of_cures(runs)
    if gains:
        count = sum(len(each) for each in gains.values())
        lines += [
            "## Measures of the plain network and what a cure gains",
            "",
            f"Points: depths and seeds. {count} comparisons, p after Holm's correction over all of them.",
            "",
        ]
        for method, each in gains.items():
            lines += [f"### {method}", "", markdown(*_rows(each, partial=False))]
    lines += _plain_values(runs)
    return "\n".join(lines).rstrip() + "\n"


def _conclusion(predicting: list[Relation]) -> str:
    if not predicting:
        return "**No measure predicts.**"
    named = [
        f"{one.measure} at {one.when} ({one.rho:+.2f}{', also beyond early accuracy' if one.beyond_early else ''})"
        for one in predicting
    ]
    return f"**{len(named)} predict{'s' * (len(named) == 1)}:** " + "; ".join(named) + "."


def _rows(table: list[Relation], partial: bool = True) -> tuple[list[str], list[list[str]]]:
    headings = ["measure", "when", "n", "ρ", "p (Holm)", "ρ by seed: mean (lowest to highest)"]
    headings += [*(["beyond early", "p (Holm)"] if partial else []), "predicts"]
    rows = []
    for one in table:
        spread = (
            f"{fmean(one.by_seed):+.2f} ({min(one.by_seed):+.2f} to {max(one.by_seed):+.2f})"
            if one.by_seed
            else "–"
        )
        row = [one.measure, one.when, str(one.n), f"{one.rho:+.2f}", f"{one.p:.3f} ({one.holm:.3f})", spread]
        if partial:
            row += ["–", "–"] if one.partial is None else [
                f"{one.partial:+.2f}", f"{one.partial_p:.3f} ({one.partial_holm:.3f})"
            ]  # fmt: skip
        rows.append([*row, "more than early" if one.beyond_early else "yes" if one.predicts else "no"])
    return headings, rows


def _plain_values(runs: list[Measured]) -> list[str]:
    """The measures of the plain networks as they are: mean over seeds, lowest to highest."""
    plain = [run for run in runs if run.key[0] == "plain"]
    if not plain:
        return []
    lines = ["## The plain network", ""]
    depths = list(dict.fromkeys(run.key[1] for run in plain))
    times = list(dict.fromkeys(when for run in plain for when, _ in run.values))
    for depth in depths:
        own = [run for run in plain if run.key[1] == depth]
        names = list(dict.fromkeys(name for run in own for _, name in run.values))
        rows = []
        for name in names:
            row = [name]
            for when in times:
                values = [run.values[when, name] for run in own if (when, name) in run.values]
                row.append(f"{fmean(values):.3g} ({min(values):.3g} to {max(values):.3g})" if values else "–")
            rows.append(row)
        if depth is not None:
            lines += [f"### {depth} blocks", ""]
        lines += [markdown(["measure", *times], rows)]
    return lines
