"""A consumer that knows onnxruntime, Pillow, NumPy and the description only gives what ``deepvit predict`` gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from exporting.deployed import SCENE, photographs, run_folder

import deepvit

pytest.importorskip("onnxruntime")


def consumed(file: Path, images: list[Path]) -> list[dict[str, float]]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("consumer.py"), file, *images],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    answers: list[dict[str, float]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize(
    ("size", "arguments"),
    [(128, {"img_size": 128, "patch_size": 32}), ((32, 48), {"img_size": (32, 48), "patch_size": 8})],
)
def test_labels_and_probabilities(size: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    small = {"depth": 1, "embed_dim": 48, "num_heads": 4, **arguments}
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", size, **small)
    made = deepvit.export(str(run))
    images = photographs(tmp_path / "photographs")
    wanted = deepvit.predict(str(run), [str(image) for image in images], device="cpu", topk=5)
    for got, row in zip(consumed(made.path, images), wanted, strict=True):
        expected = {entry["label"]: entry["probability"] for entry in row["labels"]}
        assert got == pytest.approx(expected, abs=1e-4)
        assert (
            max(expected.values()) - min(expected.values()) > 0.05
        )  # a uniform answer would agree with anything


@pytest.mark.parametrize("short_side", [None, pytest.param(40, marks=pytest.mark.slow)])
def test_a_class_for_every_pixel(short_side: int | None, tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    small = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}
    run = run_folder(
        tmp_path / "run", "vit_small_patch16_224", 32, facts={**SCENE, "short_side": short_side},
        dynamic_img_size=True, dynamic_img_pad=True, **small,
    )  # fmt: skip
    made = deepvit.export(str(run))
    assert made.step == 1
    told = json.loads(made.description.read_text())
    assert told["output"]["shape"] == ["batch", 3, "height", "width"]
    assert told["output"]["palette"] == SCENE["palette"]
    # Pillow makes smaller by averaging, so that it can only follow where the answer is made larger again.
    images = photographs(tmp_path / "photographs")[: 5 if short_side is None else 4]
    wanted = deepvit.predict(str(run), [str(image) for image in images], device="cpu", inference="whole")
    for got, row in zip(consumed(made.path, images), wanted, strict=True):
        assert {k: v for k, v in got.items() if v} == pytest.approx(row["shares"], abs=0.1)
        assert len(row["shares"]) > 1  # one class everywhere would agree with anything
