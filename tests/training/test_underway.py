"""Measuring collapse at shares of training: where, when, and without a trace in the weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deepvit
from deepvit.report import load
from deepvit.training.config import TrainConfig
from deepvit.training.diagnosing import steps_of_shares
from deepvit.training.parts import prepared

OPTIONS: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_args": {"depth": 3, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4, "drop_path_rate": 0.2},
    "data": "digits", "batch_size": 40, "max_train_images": 400, "max_val_images": 100, "epochs": 2, "devices": "cpu",
    "progress": False, "accumulate": 2, "cures": "sigma_reparam", "save_steps": 1,
}  # fmt: skip
MEASURED = {"diagnose_images": 16, "diagnose_lesions": "full", "diagnose_at": [0.0, 0.1, 0.52, 0.5]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("underway") / "run"
    return deepvit.train(out=str(out), **OPTIONS, **MEASURED).path


def test_a_share_is_a_step() -> None:
    assert steps_of_shares([0.0, 0.001, 0.1, 0.5, 0.52], 10) == {0: [0.0], 1: [0.001, 0.1], 5: [0.5, 0.52]}


def test_measured_at_the_steps_that_were_asked_for_and_at_the_end(run: Path) -> None:
    assert sorted(path.name for path in (run / "underway").iterdir()) == ["0", "0.1", "0.5", "0.52"]
    for share, step in ((0, 0), (0.1, 1), (0.5, 5), (0.52, 5)):
        found = load(run / "underway" / f"{share:g}")
        assert found.provenance["underway"] == {"share": share, "step": step}
        assert found.lesions is not None
        assert found.lesions.images == 16
        assert not found.lesions.failed
        assert len(found.lesions.single("block")) == 3
        assert not found.maps
    end = load(run)
    assert end.lesions is not None
    assert end.lesions.budget == "full"
    assert "underway" not in end.provenance
    values = [
        load(path).series["patch_similarity"].values
        for path in (run / "underway" / "0", run / "underway" / "0.5", run)
    ]
    assert len({tuple(each) for each in values}) == 3


def test_what_is_measured_at_the_start_is_the_network_as_it_was_built(run: Path) -> None:
    config = TrainConfig.from_yaml(run / "config.yaml")
    parts = prepared(config)
    report = deepvit.diagnose(
        parts.network, parts.loaders.val_loader_for(16), images=16, lesions="full", progress=False
    )
    start = load(run / "underway" / "0")
    for key, series in report.measurements.series.items():
        assert start.series[key].values == pytest.approx(series.values, abs=1e-6), key
    assert report.measurements.lesions is not None
    assert start.lesions is not None
    for mine, theirs in zip(start.lesions.effects, report.measurements.lesions.effects, strict=True):
        assert (mine.lesion, mine.blocks) == (theirs.lesion, theirs.blocks)
        assert mine.value == pytest.approx(theirs.value, abs=1e-5)


def test_training_goes_on_as_if_nothing_had_been(run: Path, tmp_path: Path) -> None:
    plain = deepvit.train(out=str(tmp_path / "plain"), **OPTIONS, diagnose_images=0).path
    assert not (plain / "underway").exists()
    one, two = (load_file(path / "model.safetensors") for path in (plain, run))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_a_run_that_goes_on_measures_what_it_had_not_reached(run: Path, tmp_path: Path) -> None:
    script = (
        "import sys, os, json, deepvit\n"
        "from deepvit.training.saving import Saving\n"
        "keep = Saving.on_train_batch_end\n"
        "def dying(self, trainer, *rest):\n"
        "    keep(self, trainer, *rest)\n"
        "    if trainer.global_step == 4: os.kill(os.getpid(), 9)\n"
        "Saving.on_train_batch_end = dying\n"
        "deepvit.train(**json.loads(sys.argv[1]))\n"
    )
    out = tmp_path / "run"
    words = json.dumps({"out": str(out), **OPTIONS, **MEASURED})
    done = subprocess.run(
        [sys.executable, "-c", script, words], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in (out / "underway").iterdir()) == ["0", "0.1"]
    written = (out / "underway" / "0.1" / "collapse.json").stat().st_mtime_ns
    deepvit.train(out=str(out), resume=True)
    assert (out / "underway" / "0.1" / "collapse.json").stat().st_mtime_ns == written
    for share in ("0", "0.1", "0.5", "0.52"):
        one, two = (load(path / "underway" / share) for path in (run, out))
        assert one.lesions is not None
        assert two.lesions is not None
        assert [e.value for e in one.lesions.effects] == [e.value for e in two.lesions.effects]


def test_a_network_that_cannot_be_measured_trains_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        **OPTIONS,
        "model": "resnet10t",
        "model_args": {},
        "cures": "",
        "epochs": 1,
        "max_train_images": 80,
    }
    deepvit.train(out=str(tmp_path / "run"), **options, **MEASURED)
    assert "no collapse report underway" in capsys.readouterr().err
