"""Which measures go with the result: statistics against scipy's own and constructed cases, the table against the runs."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from deepvit.experiments.measures import numbers_of, write_measures
from deepvit.experiments.relating import (
    END,
    Measured,
    gains_of_cures,
    holm_adjusted,
    partial_spearman,
    relations,
    spearman,
)
from deepvit.experiments.study import study
from deepvit.report import load

RNG = np.random.default_rng(0)


def made(results: np.ndarray, **measures: np.ndarray) -> list[Measured]:
    """Runs [configurations, seeds] with these measures; a name ending in _end is taken at the end."""
    runs = []
    for i, j in itertools.product(*map(range, results.shape)):
        values = {
            (END if name.endswith("_end") else "0.1", name): float(each[i, j])
            for name, each in measures.items()
        }
        early = float(measures["early"][i, j]) if "early" in measures else None
        runs.append(Measured((f"m{i}", None), j, float(results[i, j]), early, values))
    return runs


def test_rank_correlation_is_that_of_means_over_seeds_and_within_each_seed() -> None:
    y, x = RNG.normal(size=(12, 3)), RNG.normal(size=(12, 3))
    (one,) = relations(made(y, x=x))
    expected = stats.spearmanr(x.mean(1), y.mean(1))
    assert (one.rho, one.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert one.by_seed == pytest.approx([stats.spearmanr(x[:, j], y[:, j]).statistic for j in range(3)])
    assert one.n == 12


def test_partial_correlation_is_that_of_the_residuals_of_ranks() -> None:
    z = RNG.normal(size=40)
    x, y = z + RNG.normal(size=40), z + RNG.normal(size=40)
    ranks = [stats.rankdata(each) for each in (x, y, z)]
    left = [each - np.polyval(np.polyfit(ranks[2], each, 1), ranks[2]) for each in ranks[:2]]
    r, p = partial_spearman(list(x), list(y), list(z))
    assert r == pytest.approx(np.corrcoef(*left)[0, 1])
    t = r * np.sqrt(37 / (1 - r**2))
    assert p == pytest.approx(2 * stats.t.sf(abs(t), 37))
    assert partial_spearman(list(x), list(y), list(x)) == (None, 1.0)


def test_holm_is_that_of_the_textbook() -> None:
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.6, 0.9]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


def test_what_predicts_is_found_and_what_does_not_is_not() -> None:
    y = np.arange(20.0)[:, None] + RNG.normal(size=(20, 3)) * 0.1
    early = np.arange(20.0)[:, None] * 1.0 + RNG.normal(size=(20, 3)) * 8
    flips = y.copy()
    flips[:, 2] = -flips[:, 2] * 0.5  # the mean still follows, one seed does not
    table = {
        one.measure: one
        for one in relations(
            made(
                y, good=y**3, late_end=y, noise=RNG.normal(size=(20, 3)), flips=flips, early=early, same=0 * y
            )
        )
    }
    assert table["good"].predicts
    assert table["good"].beyond_early
    assert table["good"].rho == pytest.approx(1.0, abs=0.01)
    assert not table["late_end"].predicts  # it describes, and is no forecast
    assert not table["noise"].predicts
    assert table["flips"].holm < 0.05
    assert not table["flips"].predicts
    assert (table["same"].rho, table["same"].p) == (0.0, 1.0)
    assert table["early"].partial is None  # it says no more than itself
    assert len(table) == 6


def test_under_chance_alone_hardly_any_table_claims_anything() -> None:
    claims = 0
    for _ in range(40):
        noise = {f"x{i}": RNG.normal(size=(21, 3)) for i in range(30)}
        claims += any(one.predicts for one in relations(made(RNG.normal(size=(21, 3)), **noise)))
    assert claims <= 6  # 5% of tables at most are expected to


def test_a_configuration_that_lacks_a_measure_takes_no_part() -> None:
    runs = made(RNG.normal(size=(8, 2)), x=RNG.normal(size=(8, 2)))
    runs[0] = Measured(runs[0].key, 0, 1.0, None, {})
    runs[2].values["0.1", "x"] = float("nan")  # type: ignore[index]
    (one,) = relations(runs)
    assert one.n == 6
    assert relations(runs[:8]) == []  # two configurations are left


def test_gains_are_over_the_plain_network_of_the_same_depth_and_seed() -> None:
    runs = []
    for depth, seed in itertools.product((4, 8, 12, 16), (0, 1)):
        x = depth + 0.1 * seed
        runs.append(Measured(("plain", depth), seed, 50.0 - depth, 1.0, {("0.1", "x"): x, ("0.1", "y"): -x}))
        runs.append(Measured(("cure", depth), seed, 50.0 - depth + x**2, 1.0, {("0.1", "x"): 0.0}))
    runs.append(Measured(("cure", 20), 0, 1.0, 1.0, {}))  # without a plain network beside it
    (each,) = gains_of_cures(runs).values()
    assert [(one.measure, one.n, round(one.rho)) for one in each] == [("x", 8, 1), ("y", 8, -1)]
    assert each[0].by_seed == pytest.approx([1.0, 1.0])
    assert gains_of_cures([run for run in runs if run.key[1] == 4]) == {}


def test_ties_and_constants() -> None:
    assert spearman([1, 1, 1], [1, 2, 3]) == (0.0, 1.0)
    assert spearman([1, 1, 2, 3], [1, 1, 2, 3])[0] == pytest.approx(1.0)


RECIPE = """
title: tiny
methods: [plain, layerscale, qk_norm, registers, centred_attention]
seeds: [0]
train:
  model: deepvit_tiny_d16_patch4_32
  model_args: {reattention_blocks: none, img_size: 8, patch_size: 4, embed_dim: 16, num_heads: 2, depth: 2}
  data: digits
  epochs: 1
  batch_size: 64
  max_train_images: 256
  max_val_images: 64
  diagnose_images: 8
  diagnose_at: [0.5]
  diagnose_lesions: full
  devices: cpu
  progress: false
"""


def test_a_study_of_five_methods_writes_its_measures(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    out = tmp_path / "out"
    result = study(str(tmp_path / "tiny.yaml"), out=str(out))
    rows = list(csv.DictReader((out / "measures.csv").open()))
    assert {row["when"] for row in rows} == {"0.5", "end"}
    for entry in result["runs"]:
        own = [r for r in rows if (r["method"], r["seed"]) == (entry["method"], str(entry["seed"]))]
        for when, place in (("0.5", "underway/0.5"), ("end", "")):
            expected = numbers_of(load(out / "runs" / entry["run"] / place))
            assert {r["measure"]: float(r["value"]) for r in own if r["when"] == when} == pytest.approx(
                expected, rel=1e-4, abs=1e-9
            )
        assert {float(r["top1"]) for r in own} == {entry["top1"]}
    named = {row["measure"] for row in rows}
    assert {
        "lesion block, mean",
        "lesion exit, idle share",
        "earliest end, share of depth",
        "similar blocks",
    } <= named
    text = (out / "measures.md").read_text()
    assert "5 runs (5 configurations, 1 seed; 0 diverged" in text
    for name in named:  # those that predict nothing stand there too
        assert f"| {name} |" in text, name
    assert text.count("\n| ") > len(named)
    before = (out / "measures.csv").read_bytes()
    study(str(out / "study.yaml"), out=str(out))  # from finished runs
    assert (out / "measures.csv").read_bytes() == before
    assert write_measures(result["runs"][:4], out, "top1", "few") == []
