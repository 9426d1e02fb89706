"""Successive halving: who goes on, what it saves, how sure the winner is; a run that stopped is the run it would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

import deepvit
from deepvit.cli import main
from deepvit.errors import UserError
from deepvit.experiments.grid import Cell, StudyConfig
from deepvit.experiments.halving import halved, halving_in_words, halving_lines, winner
from deepvit.experiments.study import study
from deepvit.runs.folder import read_metrics

METHODS = [
    "plain",
    "layerscale",
    "qk_norm",
    "registers",
    "centred_attention",
    "attnscale",
    "featscale",
    "neutreno",
]


def config_of(**options: Any) -> StudyConfig:
    train = {"epochs": 8, "data": "digits"}
    return StudyConfig(**{"train": train, "methods": METHODS, "seeds": [3, 4, 5], "out": "none", **options})


def by_table(values: dict[str, float | None], asked: list[tuple[int, int]]) -> Any:
    def run(grid: list[Cell], until: int) -> Any:
        asked.append((len(grid), until))
        assert {cell.seed for cell in grid} == {3}
        return [(cell, {"top1": values[cell.method]}, True) for cell in reversed(grid)]

    return run


def test_the_better_half_goes_on_and_the_last_have_all_seeds() -> None:
    asked: list[tuple[int, int]] = []
    values: dict[str, float | None] = {name: float(number) for number, name in enumerate(METHODS)}
    values["neutreno"] = None  # diverged
    found = halved(config_of(), by_table(values, asked))
    assert asked == [(8, 2), (4, 4)]
    assert [{each["method"] for each in rung["kept"]} for rung in found.rungs] == [
        {"featscale", "attnscale", "centred_attention", "registers"},
        {"featscale", "attnscale"},
    ]
    assert found.last == [Cell(m, None, s) for s in (3, 4, 5) for m in ("attnscale", "featscale")]
    account = found.account([])
    assert account["epochs"] == 4 * 2 + 2 * 4 + 6 * 8
    assert account["epochs_of_all"] == 8 * 3 * 8
    assert "64 epochs instead of 192 (67% saved)" in halving_lines(account)[0]


def test_each_depth_is_halved_by_itself_and_two_are_never_dropped() -> None:
    asked: list[tuple[int, int]] = []
    config = config_of(methods=METHODS[:3], depths=[4, 8])
    run = by_table({"plain": 1.0, "layerscale": 2.0, "qk_norm": 3.0}, asked)
    found = halved(config, run)
    assert asked == [(6, 2)]  # two of each depth are left: nothing more to drop
    assert {(cell.method, cell.depth) for cell in found.last} == {
        (m, d) for m in ("layerscale", "qk_norm") for d in (4, 8)
    }
    two = halved(config_of(methods=METHODS[:2]), run)
    assert (two.rungs, len(two.last)) == ([], 6)


def test_few_epochs_make_fewer_rungs() -> None:
    asked: list[tuple[int, int]] = []
    values: dict[str, float | None] = {name: float(number) for number, name in enumerate(METHODS)}
    halved(config_of(train={"epochs": 2, "data": "digits"}), by_table(values, asked))
    assert asked == [(8, 1)]
    asked.clear()
    halved(config_of(train={"epochs": 1, "data": "digits"}), by_table(values, asked))
    assert asked == []


def entries_of(table: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"method": name, "depth": None, "seed": seed, "top1": value}
        for name, values in table.items()
        for seed, value in enumerate(values)
    ]


def test_how_sure_the_winner_is_is_paired_over_seeds() -> None:
    table = {"a": [90.0, 80.0, 70.0, 60.0], "b": [89.0, 79.1, 68.9, 59.0], "c": [50.0, 91.0, 40.0, 30.0]}
    found = winner(entries_of(table), None, "top1", higher=True)
    assert found["method"] == "a"
    near, far = found["others"]
    assert (near["method"], near["won"], near["seeds"]) == ("b", 4, 4)
    p = [float(stats.ttest_rel(table["a"], table[name]).pvalue) for name in ("b", "c")]
    assert near["p"] == pytest.approx(min(1.0, 2 * p[0]))  # the smaller of two
    assert far["p"] == pytest.approx(max(p[1], 2 * p[0]))
    assert near["lead"] == pytest.approx(1.0)
    assert not found["sure"]  # c is far behind on average, and once ahead
    assert winner(entries_of({k: table[k] for k in "ab"}), None, "top1", higher=True)["sure"]
    lower = winner(entries_of(table), None, "top1", higher=False)
    assert lower["method"] == "c"
    assert lower["others"][0]["lead"] > 0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"a": [2.0], "b": [1.0]}, "ahead of b by 1.00 in one seed: not sure, more --seeds would tell"),
        ({"a": [2.0, 3.0], "b": [1.0, 2.0]}, "ahead of b by 1.00 ± 0.00 (in 2 of 2 seeds, paired): not sure"),
        ({"a": [2.0, 3.0]}, "it alone was left"),
        ({}, "every method that was left diverged"),
    ],
)
def test_what_is_said_where_nothing_can_be_tested(table: dict[str, list[float]], said: str) -> None:
    account = {"epochs": 1, "epochs_of_all": 2, "figure": "top-1", "digits": 2, "rungs": []}
    found = {"depth": None, **winner(entries_of(table), None, "top1", higher=True)}
    assert said in halving_lines({**account, "winners": [found]})[1]
    assert said in halving_in_words({**account, "winners": [found]})


TINY: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_args": {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4, "drop_path_rate": 0.2},
    "data": "digits", "batch_size": 128, "max_train_images": 256, "max_val_images": 64, "diagnose_images": 0,
    "devices": "cpu", "progress": False, "epochs": 4,
}  # fmt: skip


def test_a_run_that_stops_and_goes_on_is_the_run_that_it_would_have_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = deepvit.train(**TINY, out=str(tmp_path / "whole"))
    out = tmp_path / "parts"
    for until in (1, 3):
        stopped = deepvit.train(**TINY, out=str(out), until=until, resume=until > 1)
        assert stopped.info["until"] == len(read_metrics(out)) == until
        assert not (out / "run.json").exists()
        assert (
            f"stopped after epoch {until} of 4. Go on by: deepvit train --resume" in capsys.readouterr().err
        )
    with pytest.raises(UserError, match="has 3 epochs already: raise --until=2"):
        deepvit.train(out=str(out), until=2, resume=True)
    assert main(["train", "--resume", "--out", str(out)]) == 0
    one, two = (load_file(path / "model.safetensors") for path in (whole.path, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    columns = ("epoch", "step", "lr", "train/loss", "val/top1")
    first, second = ([[row[c] for c in columns] for row in read_metrics(path)] for path in (whole.path, out))
    assert first == second


def test_a_study_by_halving_ends_with_tables_and_goes_on_where_it_was(tmp_path: Path) -> None:
    options = {"methods": METHODS[:5], "seeds": [0, 1], "train": TINY, "out": str(tmp_path / "s")}
    (tmp_path / "recipe.yaml").write_text(json.dumps({k: v for k, v in options.items() if k != "out"}))
    out = tmp_path / "s"
    result = study(str(tmp_path / "recipe.yaml"), out=str(out), halving=True)
    rungs = result["halving"]["rungs"]
    assert [(rung["epochs"], len(rung["values"]), len(rung["kept"])) for rung in rungs] == [
        (1, 5, 3),
        (2, 3, 2),
    ]
    for rung in rungs:  # each by what its own metrics.csv says of that epoch
        for each in rung["values"]:
            row = read_metrics(out / "runs" / f"{each['method']}-s0")[rung["epochs"] - 1]
            assert each["value"] == float(row["val/top1"])
        kept = {each["method"] for each in rung["kept"]}
        values = {each["method"]: each["value"] for each in rung["values"]}
        assert min(values[m] for m in kept) >= max(values[m] for m in values if m not in kept)
    last = {each["method"] for each in rungs[-1]["kept"]}
    assert {(run["method"], run["seed"]) for run in result["runs"]} == {(m, s) for m in last for s in (0, 1)}
    trained = sum(len(read_metrics(path)) for path in (out / "runs").iterdir())
    assert result["halving"]["epochs"] == trained == 2 * 1 + 1 * 2 + 4 * 4
    words = (out / "halving.md").read_text()
    assert "dropped" in words
    assert json.loads((out / "study.json").read_text())["halving"] == result["halving"]
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    again = study(str(out / "study.yaml"), out=str(out))
    assert again["halving"] == result["halving"]
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="take --halving"):
        StudyConfig(train={**TINY, "until": 1})
