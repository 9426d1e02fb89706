"""The suites of whole networks and of the engine at a tiny size, and their tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepvit.benchmarking import run as run_module
from deepvit.benchmarking.engine import BARE, ENGINE, run_engine_suite
from deepvit.benchmarking.measure import exponent, in_turn, peak_extra
from deepvit.benchmarking.networks import OFFICIAL, PLAIN, REFERENCE, SIDES, TINY, build, run_model_suite
from deepvit.benchmarking.run import benchmark, keep
from deepvit.benchmarking.tables import table_of
from deepvit.errors import UserError


def test_all_sides_are_the_same_network_but_for_attention() -> None:
    counts = {side: sum(p.numel() for p in build(TINY[0], side).parameters()) for side in SIDES}
    heads, depth = TINY[0].num_heads, TINY[0].depth
    assert counts["deepvit"] == counts[OFFICIAL] == counts[REFERENCE]
    assert counts["deepvit"] - counts[PLAIN] == depth * (heads * heads + 3 * heads)


def test_the_model_suite_and_its_table(tmp_path: Path) -> None:
    cases = (*TINY, replace(TINY[0], sides=SIDES))
    result = run_model_suite(cases, ("float32", "bfloat16"), rounds=2, memory=False, depths=(1, 2))
    assert [(row["dtype"], row["mode"]) for row in result["rows"]] == [
        ("float32", "eval"), ("float32", "train"), ("bfloat16", "eval"), ("bfloat16", "train"),
    ] * 2  # fmt: skip
    for row in result["rows"]:
        assert row["sides"][PLAIN]["ratio"] == 1.0
        assert all(side["median_s"] > 0 and side["rounds"] == 2 for side in row["sides"].values())
    kept = keep(result, tmp_path)
    assert {Path(path).name for path in kept["files"]} == {"model.json", "model.md", "model.png"}
    assert json.loads((tmp_path / "model.json").read_text())["rows"] == result["rows"]
    text = (tmp_path / "model.md").read_text()
    for row in result["rows"]:
        assert f"{row['sides']['deepvit']['ratio']:.2f}" in text
    assert "fitted exponents over blocks (1, 2)" in text
    assert f"{REFERENCE}: time" in text  # a side that some cases have only


@pytest.mark.slow
def test_the_engine_suite(tmp_path: Path) -> None:
    shape = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 32, "patch_size": 16}
    result = run_engine_suite(images=64, batch_size=16, model_args=shape, rounds=1, epochs=2)
    assert result["ratio"] == pytest.approx(
        result["sides"][ENGINE]["steps_per_second"] / result["sides"][BARE]["steps_per_second"]
    )
    assert "of the bare loop's steps a second" in table_of(result)


def test_the_command_keeps_what_the_suite_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tiny(rounds: int = 1) -> dict[str, object]:
        return run_model_suite(TINY, ("float32",), rounds=rounds, memory=False, depths=(1,))

    monkeypatch.setitem(run_module.SUITES, "model", tiny)
    result = benchmark("model", out=str(tmp_path), rounds=2)
    assert result["rows"][0]["sides"][PLAIN]["rounds"] == 2
    assert not (tmp_path / "model.png").exists()  # one depth is no growth
    with pytest.raises(UserError, match="attention, model, engine"):
        benchmark("modle")
    with pytest.raises(UserError, match="rounds=0"):
        benchmark("model", rounds=0)


def test_sides_are_timed_in_turn() -> None:
    order: list[str] = []
    times = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert [len(values) for values in times.values()] == [3, 3]


def test_exponent_and_peak() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)
    assert exponent([5], [1.0]) is None
    megabytes = 64
    extra = peak_extra(lambda: torch.ones(megabytes << 18).sum())
    assert extra is None or 0.9 * megabytes < extra / 2**20 < 1.5 * megabytes
