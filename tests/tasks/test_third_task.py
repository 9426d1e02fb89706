"""A task that the package does not know goes through every command, by one file and one line in the registry."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tasks.regression import Regression

from deepvit import tasks
from deepvit.cli import main
from deepvit.data import DataOptions
from deepvit.data.checking import DataCheck, Finding

TINY = (
    "--data", "digits", "--model", "vit_tiny_patch16_224", "--model.depth", "2", "--model.img_size", "8",
    "--model.patch_size", "4", "--model.embed_dim", "24", "--model.num_heads", "2", "--epochs", "1", "--devices", "cpu",
    "--diagnose_images", "8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TASKS, "regression", Regression)


def test_every_command_serves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tell(*words: str) -> str:
        code = main(list(words))
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    runs = [str(tmp_path / name) for name in ("a", "b")]
    for seed, run in enumerate(runs):
        text = tell(
            "train", "--task", "regression", *TINY, "--seed", str(seed), "--largest", "10", "--out", run
        )
        assert "val mae " in text
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["task"] == "regression"
    assert {"val/mae", "best/mae", "last/mae"} <= set(record["result"])
    rows = list(csv.DictReader((tmp_path / "a" / "metrics.csv").open()))
    assert {"train/squared_error", "val/mae"} <= set(rows[0])
    assert json.loads((tmp_path / "a" / "model.json").read_text())["facts"] == {"largest": 10.0}
    assert (tmp_path / "a" / "report.html").exists()

    assert "mae" in tell("evaluate", runs[0])
    result = tmp_path / "result.json"
    tell("evaluate", runs[0], "--out", str(result))
    assert json.loads(result.read_text())["mae"] == pytest.approx(record["result"]["val/mae"], rel=1e-5)

    Image.new("L", (8, 8), 120).save(tmp_path / "digit.png")
    assert str(tmp_path / "digit.png") in tell("predict", runs[0], str(tmp_path / "digit.png"))
    text = tell("compare", *runs, "--out", str(tmp_path / "side"))
    assert "mean absolute error" in text
    assert "accuracy" not in text
    assert "mean absolute error" in (tmp_path / "side" / "compare.html").read_text()
    assert (tmp_path / "side" / "compare.json").exists()
    assert "report.html" in tell("diagnose", runs[0], "--images", "8", "--out", str(tmp_path / "report"))
    assert "regression" in tell("list", "tasks")
    assert "--largest" in tell("train", "--task", "regression", "--help")


def test_its_data_is_listed_claimed_and_checked_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", "digits", "--task", "regression"]) == 2
    assert "data for regression is not checked here" in capsys.readouterr().err

    class Checked(Regression):
        @classmethod
        def sources(cls) -> list[dict[str, str]]:
            return [{"data": "ages", "what": "faces with their ages", "needs": "nothing"}]

        @classmethod
        def claims(cls, spec: str) -> bool:
            return spec == "ages"

        @classmethod
        def open(cls, spec: str, source: DataOptions, options: object = None) -> object:
            return super().open("digits" if spec == "ages" else spec, source)

        @classmethod
        def check(cls, data: Any, progress: Callable[[int], None]) -> DataCheck:
            return DataCheck("ages", {"train": 3, "val": 2}, [Finding("wrong", "one face is 300 years old")])

    monkeypatch.setitem(tasks.TASKS, "regression", Checked)
    assert main(["list", "data"]) == 0
    text = capsys.readouterr().out
    assert "faces with their ages" in text
    assert text.count("digit-scenes") >= 1
    assert main(["check-data", "ages"]) == 1
    text = capsys.readouterr().out
    assert "ages (regression)" in text
    assert "one face is 300 years old" in text


def test_resuming_knows_the_tasks_own_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert main(["train", "--task", "regression", *TINY, "--out", run, "--max_train_images", "64"]) == 0
    assert main(["train", "--resume", "--out", run]) == 0
    assert main(["train", "--resume", "--out", run, "--largest", "3"]) == 2
    assert "largest=9.0" in capsys.readouterr().err


def test_a_study_of_it_has_its_own_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "methods: [plain, layerscale]\nseeds: [0, 1]\n"
        "train: {task: regression, largest: 8, data: digits, model: vit_tiny_patch16_224, epochs: 1, max_train_images: 64,"
        " max_val_images: 32, diagnose_images: 0, devices: cpu, progress: false,"
        " model_args: {depth: 1, img_size: 8, patch_size: 4, embed_dim: 24, num_heads: 2}}\n"
    )
    assert main(["study", str(recipe), "--out", str(tmp_path / "study")]) == 0
    assert "mean absolute error" in (tmp_path / "study" / "table.md").read_text()
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    assert study["groups"][0]["mae"]["runs"] == 2


def test_an_option_of_another_task_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--largest", "3", "--out", str(tmp_path / "run")]) == 2
    assert "unknown option --largest" in capsys.readouterr().err
    assert main(["train", "--task", "regresion", "--out", str(tmp_path / "run")]) == 2
    assert "did you mean regression" in capsys.readouterr().err
