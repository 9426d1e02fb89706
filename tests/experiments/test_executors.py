"""Where a study's runs are done: submitit's local executor, a job that is killed, children that end with their parent."""

from __future__ import annotations

import csv
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from training.started import started

from deepvit.errors import UserError
from deepvit.experiments.executors import JobLost, Processes, make_executor
from deepvit.experiments.study import study

RECIPE = """
methods: [plain, reattention, diversity]
seeds: [0, 1]
diversity: {patch_cosine: 0.5}
train:
  model: deepvit_tiny_d16_patch4_32
  model_args: {reattention_blocks: none, img_size: 8, patch_size: 4, embed_dim: 16, num_heads: 2, depth: 2}
  data: digits
  epochs: 3
  batch_size: 32
  max_train_images: 256
  max_val_images: 64
  diagnose_images: 0
  devices: cpu
  progress: false
"""
MEASURED = ("method", "seed", "top1", "top5", "loss")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return str(path)


def table(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "table.csv").open()))
    return [{name: row[name] for name in MEASURED if name in row} for row in rows]


def kill_a_run(out: Path, killed: list[int]) -> None:
    """SIGKILL whoever holds the lock of the first run that has saved an epoch."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        for checkpoint in out.glob("runs/*/checkpoints/last.ckpt"):
            run = checkpoint.parent.parent
            if not (run / "run.json").exists():
                words = (run / ".lock").read_text().split()
                os.kill(int(words[1]), signal.SIGKILL)
                killed.append(int(words[1]))
                return
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "processes"])
def test_a_killed_job_changes_nothing_in_the_table(
    tmp_path: Path, recipe: str, executor: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    study(recipe, out=str(tmp_path / "plain"))
    out, killed = tmp_path / executor, list[int]()
    killer = threading.Thread(target=kill_a_run, args=(out, killed))
    killer.start()
    study(recipe, out=str(out), executor=executor, jobs=2)
    killer.join()
    assert killed
    assert "submitted again" in capfd.readouterr().err
    assert len(table(out)) == 6
    assert table(out) == table(tmp_path / "plain")


def fails(text: str) -> None:
    raise UserError(text)


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def finished(job: Any, seconds: float = 60) -> Any:
    until = time.monotonic() + seconds
    while not job.done():
        assert time.monotonic() < until
        time.sleep(0.05)
    return job.result()


def test_submitit_gives_results(tmp_path: Path) -> None:
    executor = make_executor("local", 1, tmp_path, {"timeout_min": 5})
    assert executor is not None
    assert finished(executor.submit(max, 3, 5)) == 5
    executor.close()


@pytest.mark.slow
def test_submitit_gives_errors_and_losses(tmp_path: Path) -> None:
    executor = make_executor("local", 1, tmp_path, {"timeout_min": 5})
    assert executor is not None
    jobs = [executor.submit(fails, "no such thing"), executor.submit(dies)]
    with pytest.raises(UserError, match="no such thing"):
        finished(jobs[0])
    with pytest.raises(JobLost):
        finished(jobs[1])
    executor.close()


def test_processes_survive_the_loss_of_one() -> None:
    executor = Processes(1)
    try:
        with pytest.raises(JobLost):
            finished(executor.submit(dies))
        assert finished(executor.submit(max, 3, 5)) == 5
        with pytest.raises(UserError, match="no such thing"):
            finished(executor.submit(fails, "no such thing"))
    finally:
        executor.close()


def test_what_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="go with --executor local or slurm"):
        make_executor("processes", 2, tmp_path, {"timeout_min": 5})
    with pytest.raises(UserError, match="--executor local"):
        make_executor("local", 1, tmp_path, {"no_such_parameter": 5})
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without SLURM, whatever this one has
    with pytest.raises(UserError, match="--executor slurm"):
        make_executor("slurm", 1, tmp_path, {})


@pytest.mark.slow
def test_runs_end_with_their_study(tmp_path: Path, recipe: str) -> None:
    words = [sys.executable, "-m", "deepvit", "study", recipe, "--out", str(tmp_path / "out"), "--jobs", "2"]
    with started([*words, "--train.epochs", "500"]) as process:
        until = time.monotonic() + 120
        while not list((tmp_path / "out").glob("runs/*/.lock")):
            assert time.monotonic() < until
            time.sleep(0.1)
        locks = (tmp_path / "out").glob("runs/*/.lock")
        holders = [int(lock.read_text().split()[1]) for lock in locks if lock.read_text()]
        process.kill()
        process.wait()
        until = time.monotonic() + 15
        while any(Path(f"/proc/{holder}").exists() for holder in holders):
            assert time.monotonic() < until, holders
            time.sleep(0.1)
