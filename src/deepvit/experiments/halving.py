"""Successive halving: many methods for a few epochs, the better half for more, the last ones to the end with all seeds.

Source: Jamieson and Talwalkar 2016 (arXiv 1502.07943), over methods, with epochs of one schedule as the budget: a run that
goes on is the run that it would have been, since it stops between two epochs and keeps its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from scipy import stats

from deepvit import tasks
from deepvit.experiments.grid import Cell, StudyConfig
from deepvit.experiments.relating import holm_adjusted
from deepvit.experiments.rows import markdown

SHARES = (0.25, 0.5)
"""Shares of the epochs after which half of the methods are dropped."""
FEWEST = 2
"""No fewer than so many methods of a depth go on to the end."""
SURE = 0.05
"""p of the paired test, after Holm's correction, below which the winner is called sure."""

FEWEST_SEEDS = 3
"""Seeds below which nothing is called sure."""

Run = Callable[[list[Cell], int], Iterable[tuple[Cell, dict[str, Any], bool]]]


@dataclass
class Halving:
    """What was tried, what was dropped where, and the runs that are left: every method that remained, with all seeds."""

    config: StudyConfig
    rungs: list[dict[str, Any]] = field(default_factory=list)
    last: list[Cell] = field(default_factory=list)

    def account(self, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Rungs, epochs that were trained and would have been, and of each depth the winner with how sure it is.

        ``entries`` are those of the runs that went to the end.
        """
        epochs, seeds = self.config.train.total_epochs, self.config.seeds
        column = tasks.find(self.config.train.task).column()
        dropped = sum(rung["epochs"] * (len(rung["values"]) - len(rung["kept"])) for rung in self.rungs)
        depths = list(dict.fromkeys(cell.depth for cell in self.last))
        everything = len(self.config.methods) * max(1, len(self.config.depths)) * len(seeds) * epochs
        return {
            "rungs": self.rungs,
            "epochs": dropped + len(self.last) * epochs,
            "epochs_of_all": everything,
            "figure": column.heading,
            "digits": column.digits,
            "winners": [
                {"depth": depth, **winner(entries, depth, column.key, column.better == "higher")}
                for depth in depths
            ],
        }


def halved(config: StudyConfig, run: Run) -> Halving:
    """Do the rungs: after each the better half of the methods of each depth is left.

    Args:
        config: the study.
        run: does runs to an epoch and gives their entries, which hold what the task watches there.

    A method whose run diverged counts as the worst. Rungs that are done are read from the folders of their runs.
    """
    column = tasks.find(config.train.task).column()
    total, seed = config.train.total_epochs, config.seeds[0]
    depths: list[int | None] = [*config.depths] if config.depths else [None]
    alive = {depth: list(config.methods) for depth in depths}
    halving = Halving(config)
    for until in sorted({max(1, round(total * share)) for share in SHARES} - {total}):
        if all(len(methods) <= FEWEST for methods in alive.values()):
            break
        grid = [Cell(method, depth, seed) for depth in depths for method in alive[depth]]
        found = {cell: entry.get(column.key) for cell, entry, _ in run(grid, until)}
        values = [{"method": c.method, "depth": c.depth, "value": found[c]} for c in grid]
        for depth in depths:
            ranked = sorted(
                (cell for cell in grid if cell.depth == depth),
                key=lambda cell: _rank(found[cell], column.better == "higher"),
            )
            keep = {cell.method for cell in ranked[: max(FEWEST, math.ceil(len(ranked) / 2))]}
            alive[depth] = [method for method in alive[depth] if method in keep]
        kept = [{"method": method, "depth": depth} for depth in depths for method in alive[depth]]
        halving.rungs.append({"epochs": until, "seed": seed, "values": values, "kept": kept})
    halving.last = [
        Cell(method, depth, each) for each in config.seeds for depth in depths for method in alive[depth]
    ]
    return halving


def _rank(value: float | None, higher: bool) -> float:
    if value is None or not math.isfinite(value):
        return math.inf
    return -value if higher else value


def winner(entries: Sequence[Mapping[str, Any]], depth: int | None, key: str, higher: bool) -> dict[str, Any]:
    """The best of the methods that went to the end, and its lead over each other, paired over the seeds of both.

    ``lead``: mean difference (positive: the winner is better), ``std`` over seeds, ``won`` of ``seeds``, ``p`` of the paired
    two-sided t-test after Holm's correction over the others; None with one seed, or where a difference has no spread.
    """
    by_method: dict[str, dict[int, float]] = {}
    for entry in entries:
        if entry["depth"] == depth and entry.get(key) is not None:
            by_method.setdefault(str(entry["method"]), {})[int(entry["seed"])] = float(entry[key])
    if not by_method:
        return {"method": None, "mean": None, "others": [], "sure": False}
    ordered = sorted(by_method, key=lambda name: _rank(fmean(by_method[name].values()), higher))
    best = ordered[0]
    others: list[dict[str, Any]] = []
    for name in ordered[1:]:
        seeds = sorted(by_method[best].keys() & by_method[name].keys())
        sign = 1.0 if higher else -1.0
        leads = [sign * (by_method[best][seed] - by_method[name][seed]) for seed in seeds]
        several = len(leads) > 1
        spread = stdev(leads) if several else None
        # Leads that agree to rounding, as shares of few images may, leave the test nothing to measure chance by.
        p = float(stats.ttest_1samp(leads, 0.0).pvalue) if spread and spread > 1e-9 else None
        mean = fmean(leads) if leads else None
        won = sum(lead > 0 for lead in leads)
        others.append({"method": name, "lead": mean, "std": spread, "won": won, "seeds": len(leads), "p": p})
    tested = [other for other in others if other["p"] is not None]
    for other, p in zip(tested, holm_adjusted([other["p"] for other in tested]), strict=True):
        other["p"] = p
    sure = bool(others) and all(
        o["p"] is not None and o["p"] < SURE and o["won"] == o["seeds"] >= FEWEST_SEEDS for o in others
    )
    return {"method": best, "mean": fmean(by_method[best].values()), "others": others, "sure": sure}


def halving_lines(account: Mapping[str, Any]) -> list[str]:
    """What halving saved and how sure each winner is, one sentence each."""
    done, whole = account["epochs"], account["epochs_of_all"]
    lines = [f"halving: {done:,} epochs instead of {whole:,} ({100 * (1 - done / whole):.0f}% saved)"]
    for found in account["winners"]:
        where = "" if found["depth"] is None else f"{found['depth']} blocks: "
        lines.append(where + _sureness(found, account))
    return lines


def _sureness(found: Mapping[str, Any], account: Mapping[str, Any]) -> str:
    if found["method"] is None:
        return "every method that was left diverged"
    value = f"{found['method']} is best ({account['figure']} {found['mean']:.{account['digits']}f})"
    if not found["others"]:
        return f"{value}; it alone was left"
    near = found["others"][0]
    if near["lead"] is None:
        return f"{value}; no seed is common with {near['method']}"
    lead = f"{near['lead']:.{account['digits']}f}"
    if near["seeds"] < 2:
        return f"{value}, ahead of {near['method']} by {lead} in one seed: not sure, more --seeds would tell"
    spread = f" ± {near['std']:.{account['digits']}f}"
    said = f"in {near['won']} of {near['seeds']} seeds, paired"
    p = "" if near["p"] is None else f", p = {near['p']:.3f} after Holm's correction"
    verdict = "sure" if found["sure"] else "not sure"
    return f"{value}, ahead of {near['method']} by {lead}{spread} ({said}{p}): {verdict}"


def halving_in_words(account: Mapping[str, Any]) -> str:
    """``halving.md``: the sentences, the leads of the winners, and what each rung saw."""
    digits = account["digits"]
    lines = ["# Successive halving", "", *(f"- {line}" for line in halving_lines(account)), ""]
    lines += [
        "A method was dropped by one seed after a part of the schedule: one that starts slowly had no second chance.",
        "",
    ]
    for found in account["winners"]:
        rows = [
            [
                other["method"],
                "–" if other["lead"] is None else f"{other['lead']:+.{digits}f}",
                "–" if other["std"] is None else f"{other['std']:.{digits}f}",
                f"{other['won']} of {other['seeds']}",
                "–" if other["p"] is None else f"{other['p']:.3f}",
            ]
            for other in found["others"]
        ]
        if rows:
            where = "" if found["depth"] is None else f", {found['depth']} blocks"
            heads = ["against", "lead", "± over seeds", "seeds won", "p (Holm)"]
            lines += [f"## {found['method']}{where}", "", markdown(heads, rows)]
    for rung in account["rungs"]:
        kept = {(each["method"], each["depth"]) for each in rung["kept"]}
        ranked = sorted(
            rung["values"], key=lambda each: (str(each["depth"]), (each["method"], each["depth"]) not in kept)
        )
        rows = [
            [
                each["method"] + ("" if each["depth"] is None else f", {each['depth']} blocks"),
                "diverged" if each["value"] is None else f"{each['value']:.{digits}f}",
                "goes on" if (each["method"], each["depth"]) in kept else "dropped",
            ]
            for each in ranked
        ]
        lines += [f"## After epoch {rung['epochs']}, seed {rung['seed']}", ""]
        lines += [markdown(["method", account["figure"], ""], rows)]
    return "\n".join(lines).rstrip() + "\n"
