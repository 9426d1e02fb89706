"""Wrong things of every kind: one line, exit code 2, nothing executed, nothing left behind, little memory."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.generator import cases

import deepvit
from deepvit.cli import main

TINY: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_args": {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4},
    "data": "digits", "batch_size": 32, "max_train_images": 64, "max_val_images": 32, "epochs": 1, "diagnose_images": 8,
    "devices": "cpu", "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = deepvit.train(**TINY, out=str(tmp_path_factory.mktemp("faults") / "run")).path
    shutil.rmtree(path / "tensorboard")
    return path


def refused(count: int, seed: int, place: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong: list[str] = []
    for case in cases(seed, count, place, run):
        capfd.readouterr()
        try:
            code: Any = main(case.words)
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
        said = capfd.readouterr()
        lines = said.err.strip().splitlines()
        good = code == 2 and len(lines) == 1 and lines[0].startswith("deepvit") and not said.out
        left = [p for p in (case.out, *case.out.parent.rglob("*owned*")) if p.exists()]
        if not good or left:
            wrong.append(f"{case.name}: {code} {[w[-60:] for w in case.words]} {lines[-3:]} {left}")
        shutil.rmtree(case.out.parent)
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    print(f"peak memory {peak / 1024**2:.2f} GiB over {count} cases")
    assert peak < max(2e9 / 1024, before + 2**18)  # of this process alone, unless tests before took as much
    assert torch.is_grad_enabled()


def test_a_sample_of_wrong_things(tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(60, 0, tmp_path, run, capfd)


@pytest.mark.slow
def test_a_thousand_wrong_things(tmp_path: Path, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(1000, 1, tmp_path, run, capfd)
