"""SIGKILLs at named and random places of a run, each resumed and compared bit for bit with the run that nobody killed.

    python tests/faults/kills.py 100 0 OUT [TMPDIR]

from the repository; TMPDIR may lie on another file system. Prints one line a kill and ``N of M`` at the end; exit code 1
unless all are equal.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.test_trust import DYING, PLACES, TINY, same_run

import deepvit

NAMES = sorted({name for name, _ in PLACES})
# How often a place is visited in the whole run, at least: a kill at a random one of these visits.
VISITS = {
    "Trainee.training_step": 20, "Trainee.optimizer_step": 10, "os.replace": 20, "os.fsync": 30, "os.link": 4,
    "checkpoints.keep_previous": 4, "checkpoints.write_atomic": 5, "RunLog.on_train_epoch_end": 2,
    "Trainee.validation_step": 4,
}  # fmt: skip


def killed(draw: random.Random, options: dict[str, Any], tmpdir: str) -> str:
    """Start a run and kill it at a named place, or at a random moment; returns where."""
    env = {**os.environ, "TMPDIR": tmpdir, "OMP_NUM_THREADS": "1"}
    if draw.random() < 0.7:
        place = draw.choice(NAMES)
        at = draw.randint(1, VISITS[place])
        command = [sys.executable, "-c", DYING, place, str(at), json.dumps(options)]
        done = subprocess.run(command, env=env, capture_output=True)
        return f"{place} {at} (code {done.returncode})"
    wait = draw.uniform(0.0, 8.0)
    # The clock runs from the first step: before it there is nothing to lose, and starting takes longest.
    code = (
        "import json, os, signal, sys, threading, deepvit\n"
        "from deepvit.training.trainee import Trainee\n"
        "first = Trainee.training_step\n"
        "def step(*a):\n"
        "    Trainee.training_step = first\n"
        "    threading.Timer(float(sys.argv[1]) / 10, lambda: os.kill(os.getpid(), 9)).start()\n"
        "    return first(*a)\n"
        "Trainee.training_step = step\n"
        "deepvit.train(**json.loads(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(wait), json.dumps(options)], env=env, capture_output=True
    )
    return f"{wait / 10:.2f} s after the first step (code {done.returncode})"


def main(count: int, seed: int, out: Path, tmpdir: str) -> int:
    """Kill ``count`` runs; returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "whole" / "run.json").exists():
        deepvit.train(**TINY, out=str(out / "whole"))
    good = hit = 0
    for number in range(count):
        draw = random.Random(seed * 1000 + number)
        folder = out / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        options = {**TINY, "out": str(folder), "resume": "auto"}
        where = killed(draw, options, tmpdir)
        hit += f"(code {-signal.SIGKILL})" in where
        try:
            deepvit.train(**options)
            same_run(out / "whole", folder)
            good, said = good + 1, "equal"
        except BaseException as error:
            said = f"NOT EQUAL: {type(error).__name__}: {error}"
        print(f"{number}: {where}: {said}", flush=True)
    print(
        f"{good} of {count} resumed and ended bit for bit as the run that was not killed; {hit} were killed",
        flush=True,
    )
    return int(good != count)


if __name__ == "__main__":
    sys.exit(
        main(
            int(sys.argv[1]),
            int(sys.argv[2]),
            Path(sys.argv[3]),
            sys.argv[4] if len(sys.argv) > 4 else "/tmp",
        )
    )
