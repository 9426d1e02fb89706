"""A real SLURM of one node: a run in two tasks, one that is queued again, a study whose job is killed."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from experiments import slurm
from experiments.test_executors import RECIPE, kill_a_run, table
from training.test_processes import WHOLE, trained, weights_differ
from training.test_trust import TINY, same_run

import deepvit
from deepvit.experiments.study import study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := slurm.missing():
        pytest.skip(reason)
    try:
        with slurm.one_node(tmp_path_factory.mktemp("slurm")) as found:
            yield {**found, "OMP_NUM_THREADS": "1"}
    except OSError as error:
        pytest.skip(str(error))


def written(file: Path, options: dict[str, object]) -> str:
    file.write_text(json.dumps(options))
    return str(file)


def until(holds: Callable[[], bool], seconds: float = 500) -> None:
    slurm.wait_until(holds, Path("the run"), seconds)


def test_two_tasks_are_one_run(tmp_path: Path, env: dict[str, str]) -> None:
    config = written(tmp_path / "config.json", {**WHOLE, "epochs": 1, "batch_size": 6})
    words = [sys.executable, "-m", "deepvit", "train", "--config", config, "--out", str(tmp_path / "run")]
    done = subprocess.run(["srun", "-n2", *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("run folder:") == 1
    assert weights_differ(trained(tmp_path / "one", 1, epochs=1), tmp_path / "run") < 1e-6
    words = [sys.executable, "-m", "deepvit", "evaluate", str(tmp_path / "run")]
    done = subprocess.run(["srun", "-n2", *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("101 images") == 1
    # Inside an allocation, without srun, it is one process.
    inside = {**env, "SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}
    done = subprocess.run(words, env=inside, capture_output=True, text=True, timeout=300)
    assert "101 images" in done.stdout, done.stderr


def test_a_job_that_is_queued_again_goes_on(tmp_path: Path, env: dict[str, str]) -> None:
    whole = deepvit.train(**{**TINY, "epochs": 15}, out=str(tmp_path / "whole")).path
    config = written(tmp_path / "config.json", {**TINY, "epochs": 15})
    out = tmp_path / "run"
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --requeue --output={tmp_path}/log --open-mode=append\n"
        f"srun {sys.executable} -m deepvit train --config {config} --resume auto --out {out}\n"
    )
    job = subprocess.check_output(
        ["sbatch", "--parsable", str(script)], env=env, text=True, cwd=tmp_path
    ).strip()
    until(lambda: (out / "metrics.csv").exists())
    assert not (out / "run.json").exists()
    subprocess.run(["scontrol", "requeue", job], env=env, check=True)
    until(lambda: job in slurm.told(["squeue", "-h", "-t", "PENDING", "-o", "%A"], env))
    before = len(list(csv.reader((out / "metrics.csv").open())))
    # SLURM lets a job wait two minutes before it starts it again.
    subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], env=env, check=True)
    until(lambda: (out / "run.json").exists())
    assert 1 < before < 16
    same_run(whole, out)
    assert "SIGTERM; the run is saved" in (tmp_path / "log").read_text()


def test_a_study_whose_job_is_killed_has_the_same_table(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = str(tmp_path / "tiny.yaml")
    Path(recipe).write_text(RECIPE.replace("epochs: 3", "epochs: 20"))
    methods = ["plain", "reattention"]
    study(recipe, out=str(tmp_path / "plain"), methods=methods)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert shutil.which("sbatch")
    killed: list[int] = []
    out = tmp_path / "queue"
    thread = threading.Thread(target=kill_a_run, args=(out, killed), daemon=True)
    thread.start()
    study(recipe, out=str(out), methods=methods, executor="slurm", jobs=2)
    thread.join(1)
    assert killed
    assert "was lost" in capfd.readouterr().err
    assert table(tmp_path / "plain") == table(out)
