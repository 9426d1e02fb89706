"""Collapse reports of runs in several processes: the first one measures, and waits for nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deepvit

RUN = {
    "model": "deepvit_tiny_d16_patch4_32",
    "model_args": {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 16, "num_heads": 2},
    **{"data": "digits", "max_train_images": 64, "max_val_images": 33, "epochs": 2, "batch_size": 16},
    **{"devices": "cpu:2", "diagnose_images": 8, "diagnose_at": [0, 0.5], "progress": False},
}


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_run_in_two_processes_has_all_its_reports(tmp_path: Path, strategy: str) -> None:
    out = tmp_path / "run"
    run = deepvit.train(**RUN, strategy=strategy, out=str(out))
    assert run.result["epochs"] == 2
    whole = json.loads((out / "collapse.json").read_text())
    assert whole["lesions"]["failed"] == ""
    assert (out / "run.json").exists()
    for share, step in (("0", 0), ("0.5", 2)):
        told = json.loads((out / "underway" / share / "collapse.json").read_text())
        assert told["provenance"]["underway"]["step"] == step
        assert len(told["blocks"]) == 2


def test_measures_of_a_run_made_longer_are_of_the_new_length(tmp_path: Path) -> None:
    out = tmp_path / "run"
    one = {**RUN, "devices": "cpu", "epochs": 1, "diagnose_at": [0.5]}
    deepvit.train(**one, out=str(out))
    file = out / "underway" / "0.5" / "collapse.json"
    assert json.loads(file.read_text())["provenance"]["underway"]["step"] == 2
    deepvit.train(out=str(out), resume=True, epochs=3)
    assert json.loads(file.read_text())["provenance"]["underway"]["step"] == 6
