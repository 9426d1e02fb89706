"""Whether a measure of collapse goes with the accuracy at the end, over the configurations of a study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from scipy import stats

END = "end"
"""When a measure is taken that is taken of the deployed weights; other times are shares of training."""
ALPHA = 0.05
"""p after Holm's correction below which a measure is said to predict."""
FEWEST = 5
"""Configurations below which nothing is related."""

Key = tuple[str, int | None]


@dataclass(frozen=True)
class Measured:
    """One run: its configuration (method, depth), seed, accuracy at the end, and measures by (when, name)."""

    key: Key
    seed: int
    result: float
    early: float | None = None
    values: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass
class Relation:
    """How one measure goes with the accuracy at the end, over configurations.

    ``rho`` is Spearman's rank correlation of the means over seeds, ``p`` its two-sided p by the t approximation and ``holm``
    that after correction over all relations of the table. ``by_seed``: rho within each seed. ``partial``: given the
    accuracy after the first epoch, with ``partial_p`` and ``partial_holm``. ``n``: configurations.
    """

    when: str
    measure: str
    n: int
    rho: float
    p: float
    by_seed: list[float]
    partial: float | None = None
    partial_p: float = 1.0
    holm: float = 1.0
    partial_holm: float = 1.0

    @property
    def same_sign(self) -> bool:
        """Whether every seed by itself has the sign of the whole."""
        return bool(self.by_seed) and all(each * self.rho > 0 for each in self.by_seed)

    @property
    def predicts(self) -> bool:
        """Taken before the end, beyond chance after correction, and with one sign in every seed."""
        return self.when != END and self.holm < ALPHA and self.same_sign

    @property
    def beyond_early(self) -> bool:
        """Whether it also says more than the accuracy after the first epoch."""
        return self.predicts and self.partial is not None and self.partial_holm < ALPHA


def relations(runs: Iterable[Measured]) -> list[Relation]:
    """Every measure that at least ``FEWEST`` configurations have, in order of the size of its correlation.

    A configuration takes part in a measure where all of its runs have it. A measure that is the same everywhere has
    correlation 0 and p 1.
    """
    found = list(runs)
    names = list(dict.fromkeys(name for run in found for name in run.values))
    table: list[Relation] = []
    for when, measure in names:
        have = with_all(found, (when, measure))
        keys = list(dict.fromkeys(run.key for run in have))
        if len(keys) < FEWEST:
            continue
        x = means(have, keys, lambda run, at=(when, measure): run.values[at])
        y = means(have, keys, lambda run: run.result)
        rho, p = spearman(x, y)
        one = Relation(when, measure, len(keys), rho, p, by_seed(have, (when, measure)))
        if all(run.early is not None for run in have):
            early = means(have, keys, lambda run: run.early)
            one.partial, one.partial_p = partial_spearman(x, y, early)
        table.append(one)
    for one, holm in zip(table, holm_adjusted([one.p for one in table]), strict=True):
        one.holm = holm
    for one, holm in zip(table, holm_adjusted([one.partial_p for one in table]), strict=True):
        one.partial_holm = holm
    return sorted(table, key=lambda one: (one.when == END, -abs(one.rho)))


def with_all(runs: Sequence[Measured], name: tuple[str, str]) -> list[Measured]:
    """The runs of the configurations whose every run has this measure."""
    lacking = {run.key for run in runs if name not in run.values or not math.isfinite(run.values[name])}
    return [run for run in runs if run.key not in lacking]


def means(runs: Sequence[Measured], keys: Sequence[Key], value: object) -> list[float]:
    """Mean over the seeds of each configuration."""
    assert callable(value)
    return [fmean(value(run) for run in runs if run.key == key) for key in keys]


def by_seed(runs: Sequence[Measured], name: tuple[str, str]) -> list[float]:
    """The rank correlation within each seed that has enough configurations."""
    found = []
    for seed in sorted({run.seed for run in runs}):
        own = [run for run in runs if run.seed == seed]
        if len(own) >= FEWEST:
            found.append(spearman([run.values[name] for run in own], [run.result for run in own])[0])
    return found


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's rank correlation (ties get their mean rank) and its two-sided p; 0 and 1 where one does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, 1.0
    found = stats.spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)


def partial_spearman(
    x: Sequence[float], y: Sequence[float], given: Sequence[float]
) -> tuple[float | None, float]:
    """Rank correlation of x and y with what both share with ``given`` taken out, and its two-sided p (n − 3 degrees).

    (r_xy − r_xz r_yz) / √((1 − r_xz²)(1 − r_yz²)) of the rank correlations; None where x or y is ``given`` by rank.
    """
    xy, xz, yz = spearman(x, y)[0], spearman(x, given)[0], spearman(y, given)[0]
    left = (1 - xz**2) * (1 - yz**2)
    if left < 1e-12:
        return None, 1.0
    r = max(-1.0, min(1.0, (xy - xz * yz) / math.sqrt(left)))
    free = len(x) - 3
    if free < 1 or abs(r) == 1:
        return r, 1.0 if free < 1 else 0.0
    t = r * math.sqrt(free / (1 - r**2))
    return r, float(2 * stats.t.sf(abs(t), free))


def holm_adjusted(p: Sequence[float]) -> list[float]:
    """p-values after Holm's correction for so many comparisons (Holm 1979): in order, max over smaller of (m − i) p."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, largest = [1.0] * len(p), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = largest
    return adjusted


def gains_of_cures(runs: Iterable[Measured], plain: str = "plain") -> dict[str, list[Relation]]:
    """For each method, whether a measure *of the plain network* goes with what the method gains over it.

    The points are the depths and seeds that both were run at; the gain is the difference of the accuracies at the end.
    ``by_seed`` holds the correlation over depths within each seed. Methods with fewer than ``FEWEST`` points, or of one
    depth only, are left out. Holm's correction is over all methods together.
    """
    found = list(runs)
    before = {(run.key[1], run.seed): run for run in found if run.key[0] == plain}
    table: dict[str, list[Relation]] = {}
    for method in dict.fromkeys(run.key[0] for run in found if run.key[0] != plain):
        pairs = [
            (before[run.key[1], run.seed], run)
            for run in found
            if run.key[0] == method and (run.key[1], run.seed) in before
        ]
        if len(pairs) < FEWEST or len({base.key for base, _ in pairs}) < 2:
            continue
        gains = [cured.result - base.result for base, cured in pairs]
        for name in dict.fromkeys(name for base, _ in pairs for name in base.values):
            if all(math.isfinite(base.values.get(name, math.nan)) for base, _ in pairs):
                x = [base.values[name] for base, _ in pairs]
                rho, p = spearman(x, gains)
                seeds = _within_seeds(pairs, x, gains)
                table.setdefault(method, []).append(Relation(*name, len(pairs), rho, p, seeds))
    every = [one for each in table.values() for one in each]
    for one, holm in zip(every, holm_adjusted([one.p for one in every]), strict=True):
        one.holm = holm
    return {
        method: sorted(each, key=lambda one: (one.when == END, -abs(one.rho)))
        for method, each in table.items()
    }


def _within_seeds(
    pairs: Sequence[tuple[Measured, Measured]], x: Sequence[float], gains: Sequence[float]
) -> list[float]:
    found = []
    for seed in sorted({base.seed for base, _ in pairs}):
        own = [place for place, (base, _) in enumerate(pairs) if base.seed == seed]
        if len(own) > 2:
            found.append(spearman([x[i] for i in own], [gains[i] for i in own])[0])
    return found
