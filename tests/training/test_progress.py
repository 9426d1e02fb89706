"""What a run shows while it trains and at its end, and how it goes on: longer, or after an interruption."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from training.test_run import tiny

import deepvit
from deepvit.commands.train import show
from deepvit.errors import UserError
from deepvit.experiments.grid import StudyConfig
from deepvit.experiments.study import recipe_name, study
from deepvit.tasks import find
from deepvit.training.callbacks import Progressing
from deepvit.training.config import TrainConfig
from deepvit.training.groups import OptimOptions
from deepvit.training.optim import build_schedule


def test_a_line_an_epoch_stays_in_a_terminal() -> None:
    screen = io.StringIO()
    progress = Progressing()
    progress.console = Console(file=screen, force_terminal=True, width=60)
    trainer: Any = SimpleNamespace(
        is_global_zero=True, max_epochs=2, num_training_batches=3, current_epoch=0, global_step=0
    )
    progress.on_train_start(trainer, None)  # type: ignore[arg-type]
    row = {"epoch": 1, "train/loss": 0.5, "val/top1": 91.25, "seconds": 1.5, "val_seconds": 0.5}
    progress.show(trainer, row, find("classification").column())
    progress.teardown(trainer, None, "fit")
    assert "epoch 1/2  loss 0.500  val top-1 91.25%  1.5 s\n" in screen.getvalue()


def test_the_end_names_the_best_epoch_and_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = deepvit.train(**tiny(tmp_path / "run", epochs=2, keep="best", diagnose_images=8))
    show(run)
    shown = capsys.readouterr().out
    rows = list(csv.DictReader((run.path / "metrics.csv").open()))
    best = max(rows, key=lambda row: float(row["val/top1"]))
    assert f"best epoch: {best['epoch']} of 2 (val top-1 {float(best['val/top1']):.2f}%)" in shown
    assert "its weights are kept" in shown
    assert f"collapse: {run.info['verdict']}\n" in shown


def test_a_finished_run_is_made_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    first = deepvit.train(**tiny(out, epochs=2, warmup_steps=1, lr=1e-3))
    short = list(csv.DictReader((out / "metrics.csv").open()))
    with pytest.raises(UserError, match="longer, not 1"):
        deepvit.train(out=str(out), resume=True, epochs=1)
    assert deepvit.train(out=str(out), resume=True, epochs=2).info == first.info
    capsys.readouterr()
    longer = deepvit.train(out=str(out), resume=True, epochs=4, progress=False, devices="cpu")
    told = capsys.readouterr().err
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert rows[:2] == short
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert longer.result["epochs"] == 4
    assert TrainConfig.from_yaml(out / "config.yaml").optim.epochs == 4

    # The rate is that of a run of four epochs from its start, by timm's own schedule.
    import torch

    steps = int(rows[0]["step"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = build_schedule(optimizer, OptimOptions(epochs=4, warmup_steps=1, lr=1e-3), steps)
    schedule.step_update(num_updates=2 * steps)
    here = optimizer.param_groups[0]["lr"]
    assert f"from step {2 * steps} on" in told
    assert "schedule of 4 epochs" in told
    assert f"{here:.2e} here" in told
    schedule.step_update(num_updates=3 * steps)
    assert float(rows[2]["lr"]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)


STUDY: dict[str, Any] = {
    "methods": ["plain"],
    "train": {k: v for k, v in tiny(Path(), epochs=2).items() if k not in ("out", "progress")},
}


def test_an_interrupted_study_names_its_own_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepvit.training import callbacks

    keep = callbacks.RunLog.on_train_batch_end

    def dying(self: Any, trainer: Any, module: Any, *rest: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        keep(self, trainer, module, *rest)

    monkeypatch.setattr(callbacks.RunLog, "on_train_batch_end", dying)
    out = tmp_path / "a study"
    with pytest.raises(KeyboardInterrupt):
        study("quickstart", StudyConfig(**STUDY, out=str(out)))
    told = capsys.readouterr().err
    assert f"deepvit study '{out}/study.yaml'" in told
    assert "deepvit train" not in told
    monkeypatch.undo()
    again = StudyConfig.from_yaml(out / "study.yaml")
    assert again.plain() == StudyConfig(**STUDY, out=str(out)).plain()
    assert recipe_name(str(out / "study.yaml"), out) == "a study"
    (out / "study.json").write_text(json.dumps({"recipe": "quickstart"}))
    assert recipe_name(str(out / "study.yaml"), out) == "quickstart"
