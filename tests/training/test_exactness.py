"""Several processes compute what one does with the same global batch: gradients, and where training ends.

At ordinary learning rates, without what AdamW makes of rounding: see ``exact.py``. ``test_processes.py`` has the same with
AdamW, at a learning rate so small that its steps do not hide anything.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training.test_processes import BATCH, WHOLE, rows

SCRIPT = str(Path(__file__).parent / "exact.py")


def trained(how: str, out: Path, world: int, **options: Any) -> Path:
    """A run of exact.py in so many processes of torchrun."""
    given = {**WHOLE, "devices": "cpu", "batch_size": BATCH // world, "out": str(out), **options}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    command = [sys.executable, *start, SCRIPT, how, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def state(run: Path) -> dict[str, torch.Tensor]:
    """Weights and running statistics, of the network, its moving average and the losses' heads."""
    loaded = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: value.double() for name, value in loaded.items()}


def apart(one: Path, two: Path) -> float:
    """Distance of all weights and statistics, relative to their length."""
    a, b = state(one), state(two)
    assert set(a) == set(b)
    distance = sum(float((a[name] - b[name]).square().sum()) for name in a)
    return (distance / sum(float(value.square().sum()) for value in a.values())) ** 0.5


def losses_apart(one: Path, two: Path) -> float:
    """The largest relative difference of what is minimised, its main term and the validation loss, over the epochs."""
    names = ("train/loss", "train/cross_entropy", "val/loss")
    pairs = [(float(a[n]), float(b[n])) for a, b in zip(rows(one), rows(two), strict=True) for n in names]
    return max(abs(a / b - 1) for a, b in pairs)


STEP = {
    "max_train_images": BATCH, "max_val_images": 10, "epochs": 1, "lr": 0.1, "min_lr": 0.1, "weight_decay": 0.0,
    "clip_grad": 0.0,
}  # fmt: skip
"""One step of SGD: what changes is the gradient, times 0.1."""


def unlike(one: Path, two: Path, most: float) -> dict[str, float]:
    """What differs by more than so much in any number, by name."""
    a, b = state(one), state(two)
    found = {name: float((a[name] - b[name]).abs().max()) for name in a}
    return {name: size for name, size in found.items() if size > most}


@pytest.mark.slow
def test_every_gradient_of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    one, two = (trained("sgd64", tmp_path / str(world), world, **STEP) for world in (1, 2))
    assert unlike(one, two, 1e-13) == {}


@pytest.mark.slow
def test_every_gradient_in_shares_is_that_of_one_network(tmp_path: Path) -> None:
    # Lightning has no float64 for sharded networks; random numbers of float32 are others than those of float64.
    one = trained("sgd", tmp_path / "one", 1, **STEP)
    assert unlike(one, trained("sgd", tmp_path / "two", 2, strategy="fsdp", **STEP), 3e-6) == {}


SGD = {"lr": 0.001, "min_lr": 0.001, "epochs": 5}
"""With momentum 0.9: each step moves ten times as far. Ten times this rate carries rounding ten times as far too (1e-5)."""


@pytest.mark.slow
def test_fifty_steps_at_an_ordinary_learning_rate(tmp_path: Path) -> None:
    one = trained("sgd", tmp_path / "one", 1, **SGD)
    assert rows(one)[-1]["step"] == "50"
    for world in (2, 3):
        several = trained("sgd", tmp_path / str(world), world, **SGD)
        assert apart(one, several) < 1e-6
        assert losses_apart(one, several) < 1e-6
    sharded = trained("sgd", tmp_path / "fsdp", 2, strategy="fsdp", **SGD)
    assert apart(one, sharded) < 1e-5
    assert losses_apart(one, sharded) < 1e-5
    by_itself = trained("sgd", tmp_path / "apart", 2, sync_batchnorm=False, **SGD)
    assert apart(one, by_itself) > 1e-4


@pytest.mark.slow
def test_fifty_steps_of_adamw_in_float64(tmp_path: Path) -> None:
    options = {"lr": 5e-4, "min_lr": 1e-5, "epochs": 5}
    one, two = (trained("adamw64", tmp_path / str(world), world, **options) for world in (1, 2))
    assert apart(one, two) < 1e-9  # in float32 AdamW makes 1e-5 of it
    assert losses_apart(one, two) < 1e-6  # validation is measured in float32
