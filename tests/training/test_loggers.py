"""Where curves are shown beside metrics.csv: TensorBoard, Weights & Biases, both, nowhere."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from training.test_run import tiny

import deepvit
from deepvit.errors import UserError


class FakeRun:
    """A run of Weights & Biases that keeps what it is given."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, [], False
        self.id, self.name, self.step = options.get("id") or "abc123", options.get("name"), 0
        self.config = self

    def update(self, values: dict[str, Any], **_: Any) -> None:
        self.configured = values

    def define_metric(self, *_: Any, **__: Any) -> None:
        return

    def log(self, values: dict[str, Any], **_: Any) -> None:
        self.logged.append(dict(values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """A module in the place of wandb; its runs."""
    runs: list[FakeRun] = []
    module: Any = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.__version__, module.run = "0.31.0", None
    module.Image = lambda picture, **_: ("picture", picture.shape)

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(**options))
        return runs[-1]

    module.init = init
    for name in ("wandb.sdk", "wandb.sdk.lib", "wandb.wandb_run"):
        part: Any = types.ModuleType(name)
        part.RunDisabled, part.Run = type("RunDisabled", (), {}), FakeRun
        monkeypatch.setitem(sys.modules, name, part)
    module.sdk = sys.modules["wandb.sdk"]
    sys.modules["wandb.sdk"].lib = sys.modules["wandb.sdk.lib"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return runs


def test_both_show_the_same_curves(wandb: list[FakeRun], tmp_path: Path) -> None:
    out = tmp_path / "run"
    deepvit.train(**tiny(out, epochs=2, logger="both", log_every=1))
    (run,) = wandb
    names = {name for values in run.logged for name in values}
    assert {"train/cross_entropy", "val/top1", "lr"} <= names
    assert run.configured["epochs"] == 2
    assert run.configured["in_force.precision"] == "32-true"
    assert run.options["project"] == "deepvit"
    assert run.finished  # a study's next run, in the same process, is another one
    assert list((out / "tensorboard").iterdir())
    # The run goes on under the same name.
    deepvit.train(resume=True, out=str(out), epochs=3, progress=False)
    assert wandb[1].options["id"] == "abc123"
    assert wandb[1].options["resume"] == "allow"


def test_pictures_go_to_weights_and_biases(wandb: list[FakeRun], tmp_path: Path) -> None:
    import torch

    from deepvit.training.loggers import build_loggers, show_picture

    loggers = build_loggers("wandb", tmp_path)
    show_picture(loggers, "val/examples", torch.zeros(3, 8, 16, dtype=torch.uint8), 5)
    assert [("picture", (8, 16, 3))] in [values.get("val/examples") for values in wandb[0].logged]


def test_nowhere(tmp_path: Path) -> None:
    out = tmp_path / "run"
    deepvit.train(**tiny(out, logger="none"))
    assert not (out / "tensorboard").exists()
    assert (out / "metrics.csv").exists()


def test_without_the_package_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else real(name, *more)
    )
    with pytest.raises(UserError, match=r"--logger wandb needs the extra: pip install 'deepvit\[wandb\]'"):
        deepvit.train(**tiny(tmp_path / "run", logger="wandb"))
    assert not (tmp_path / "run").exists()
