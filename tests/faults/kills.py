"""SIGKILLs at named and random places of a run, each resumed and compared bit for bit with the run that nobody killed.

    python tests/faults/kills.py COUNT SEED OUT [--tmpdir DIR] [--full] [--json FILE]

from the repository. A first run is surveyed: every step, every write, every rename, link and fsync in it, by the name of
the file. Each of these kinds is hit at least once, the rest are drawn among all visits, three in ten at a random moment.
``--tmpdir`` may lie on another file system. ``--full``: the run folder lies on a file system of a few megabytes, which is
filled up at the moment; the run then ends by itself or is killed some visits later, room is made, and it goes on. That
needs the right to mount a tmpfs. Prints one line a kill; exit code 1 unless all are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from training.test_trust import TINY, same_run

from deepvit.cli import main as deepvit
from deepvit.files import write_json
from deepvit.provenance import versions
from deepvit.runs.lock import NAME as LOCK
from deepvit.training import checkpoints
from deepvit.training.callbacks import RunLog
from deepvit.training.trainee import Trainee

PLACES: dict[str, tuple[Any, str]] = {
    "step": (Trainee, "training_step"), "update": (Trainee, "optimizer_step"), "validation": (Trainee, "validation_step"),
    "row": (RunLog, "on_train_epoch_end"), "keep": (checkpoints, "keep_previous"), "bytes": (Path, "write_bytes"),
    "stream": (checkpoints._Hashing, "write"), "fsync": (os, "fsync"), "rename": (os, "replace"), "link": (os, "link"),
}  # fmt: skip
Visit = tuple[str, str]
"""A place and the file that it is about ("" where it is about none)."""


def file_of(place: str, args: tuple[Any, ...]) -> str:
    """The name of the file that a visit is about, as it will be called in the end."""
    if place == "fsync":
        path = os.readlink(f"/proc/self/fd/{args[0]}")
    elif place in ("rename", "link", "bytes"):
        path = str(args[1] if place == "rename" else args[0])
    else:
        return ""
    return re.sub(r"^\.(.+)-[a-z0-9_]{8}(\.\w+)$", r"\1\2", Path(path).name)


def watched(seen: Callable[[int, Visit, tuple[Any, ...]], None]) -> None:
    """Call ``seen`` at every visit of a place from now on, before what happens there; for a process of its own."""
    count = 0

    def watch(place: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            seen(count, (place, file_of(place, args)), args)
            return inner(*args, **kwargs)

        return wrapped

    for place, (owner, name) in PLACES.items():
        setattr(owner, name, watch(place, getattr(owner, name)))


def die(visit: Visit, args: tuple[Any, ...]) -> None:
    """End by SIGKILL; a write has half of its bytes in the file by then."""
    with contextlib.suppress(OSError):
        if visit[0] == "stream":
            args[0].file.write(bytes(args[1])[: len(bytes(args[1])) // 2])
            args[0].file.flush()
        elif visit[0] == "bytes":
            with args[0].open("wb") as file:
                file.write(args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def forked(action: Callable[[], int], log: Path) -> int:
    """The exit code of an action in a process of its own (negative for a signal); what it says goes into ``log``.

    This process has imported everything and never trains, so that a start costs nothing.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            code = action()
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(out: Path, config: Path) -> int:
    """``deepvit train --resume auto``."""
    return deepvit(["train", "--config", str(config), "--resume", "auto", "--out", str(out)])


def surveyed(out: Path, config: Path) -> tuple[list[Visit], float]:
    """Train the whole run; every visit in order, and the seconds from the first step to the end."""
    visits: list[Visit] = []
    began: list[float] = []

    def seen(count: int, visit: Visit, args: tuple[Any, ...]) -> None:
        visits.append(visit)
        if visit[0] == "step" and not began:
            began.append(time.monotonic())

    def action() -> int:
        watched(seen)
        code = train(out, config)
        (out.parent / "survey.json").write_text(json.dumps([visits, time.monotonic() - began[0]]))
        return code

    if forked(action, out.parent / "whole.log"):
        raise SystemExit((out.parent / "whole.log").read_text())
    visits, seconds = json.loads((out.parent / "survey.json").read_text())
    return [(place, file) for place, file in visits], seconds


def fill(folder: Path, room: int) -> None:
    """Fill the file system of a folder up to so many bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    handle = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
    os.posix_fallocate(handle, 0, max(1, free - room))
    os.close(handle)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int = 4) -> Iterator[Path]:
    """A file system of so many megabytes in ``folder``, inside.

    Raises:
        OSError: it cannot be mounted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)  # a test may have taken it off


def ends_early(
    draw: random.Random, at: int | None, seconds: float, disk: Path | None, log: Path
) -> Callable[[], None]:
    """What a child does before it trains, so that it dies at its ``at``-th visit or after a random time.

    Where ``disk`` is given, that is filled up at this moment instead, and the child dies some visits later or not at all.
    """
    after = draw.choice([None, 1, 2, 3, 5, 8])
    room = draw.choice([0, draw.randrange(400_000)])
    wait, due = draw.uniform(0, seconds), [at]

    def strike(count: int, visit: Visit, args: tuple[Any, ...]) -> None:
        log.write_text(f"{visit[0]} {visit[1]}".strip())
        if disk is None or (disk / "filler").exists():
            die(visit, args)
        fill(disk, room)
        due[0] = None if after is None else count + after

    def seen(count: int, visit: Visit, args: tuple[Any, ...]) -> None:
        if at is None and due[0] is None and visit[0] == "step":
            due[0] = -1
            timer = threading.Timer(wait, strike, (0, (f"{wait:.2f} s after the first step", ""), ()))
            timer.daemon = True
            timer.start()
        if count == due[0]:
            strike(count, visit, args)

    return lambda: watched(seen)


def case(
    draw: random.Random,
    number: int,
    visits: list[Visit],
    seconds: float,
    work: Path,
    small: Path | None,
    config: Path,
) -> dict[str, Any]:
    """One run that is ended early and goes on: where, how it ended, what is wrong with what came out ("" for nothing)."""
    kinds = sorted(set(visits))
    random.Random(0).shuffle(kinds)
    at: int | None = None
    if number < len(kinds) or draw.random() < 0.7:
        kind = kinds[number] if number < len(kinds) else draw.choice(kinds)
        at = draw.choice([i + 1 for i, visit in enumerate(visits) if visit == kind])
    folder, said, where = (small or work) / "run", work / "ended.log", work / "where"
    shutil.rmtree(folder, ignore_errors=True)
    where.unlink(missing_ok=True)
    prepare = ends_early(draw, at, seconds, small, where)

    def early() -> int:
        prepare()
        return train(folder, config)

    code, wrong = forked(early, said), ""
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.startswith("deepvit")]
    if small is not None:
        (small / "filler").unlink(missing_ok=True)
        one = (
            len(lines) == 1
            and "cannot be written" in lines[0]
            and "Traceback" not in said.read_text(errors="replace")
        )
        if code == 2 and not one:
            wrong = f"a full disk is not said in one line: {said.read_text(errors='replace')[-800:]}"
    if code not in ((-signal.SIGKILL, 2, 0) if small is not None else (-signal.SIGKILL, 0)):
        wrong = f"ended with {code}: {said.read_text(errors='replace')[-800:]}"
    if number % 10 == 0:  # a Python of its own, as people start it
        words = ["train", "--config", str(config), "--resume", "auto", "--out", str(folder)]
        again = subprocess.run([sys.executable, "-m", "deepvit", *words], capture_output=True, text=True)
        code_again, text = again.returncode, again.stderr
    else:
        code_again = forked(lambda: train(folder, config), work / "again.log")
        text = (work / "again.log").read_text(errors="replace")
    if code_again:
        wrong = wrong or f"going on ended with {code_again}: {text[-800:]}"
    try:
        same_run(work / "whole", folder)
    except (AssertionError, OSError, ValueError) as error:
        wrong = wrong or f"{type(error).__name__}: {str(error)[:300]}"
    left = [p.name for p in folder.rglob(".*") if p.name != LOCK]
    if left:
        wrong = wrong or f"left behind: {left}"
    place = where.read_text() if where.exists() else "nowhere"
    return {"at": place, "code": code, "wrong": wrong}


def main(count: int, seed: int, out: Path, tmpdir: Path | None, full: bool, record: Path | None) -> int:
    """End ``count`` runs early; returns the exit code."""
    out.mkdir(parents=True, exist_ok=True)
    if tmpdir is not None:
        os.environ["TMPDIR"] = str(tmpdir)
    torch.set_num_threads(1)
    config = out / "config.json"
    config.write_text(json.dumps(TINY))
    shutil.rmtree(out / "whole", ignore_errors=True)
    visits, seconds = surveyed(out / "whole", config)
    cases, started = list[dict[str, Any]](), time.monotonic()
    with small_disk(out / "small") if full else contextlib.nullcontext(None) as small:
        elsewhere = tmpdir is not None and os.stat(tmpdir).st_dev != os.stat(small or out).st_dev
        for number in range(count):
            draw = random.Random(seed * 1000 + number)
            found = case(draw, number, visits, seconds, out, small, config)
            cases.append(found)
            print(f"{number}: {found['at']} ({found['code']}): {found['wrong'] or 'equal'}", flush=True)
    good = sum(not found["wrong"] for found in cases)
    killed = sum(found["code"] == -signal.SIGKILL for found in cases)
    result = {
        "what": "the disk is full at the moment, then freed" if full else "SIGKILL",
        "seed": seed, "runs": count, "equal": good, "killed": killed,
        "ended_with_2": sum(found["code"] == 2 for found in cases),
        "kinds_of_places": len(set(visits)), "visits_of_a_whole_run": len(visits),
        "tmpdir_on_another_file_system": elsewhere,
        "minutes": round((time.monotonic() - started) / 60, 1), "versions": versions(),
        "places": dict(sorted(Counter(re.sub(r"^[\d.]+ s", "some s", c["at"]) for c in cases).items())),
        "cases": cases,
    }  # fmt: skip
    if record is not None:
        write_json(record, result)
    print(
        f"{good} of {count} went on and ended bit for bit as the run that nothing happened to; {killed} were killed"
    )
    return int(good != count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tmpdir", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        sys.exit(main(given.count, given.seed, given.out, given.tmpdir, given.full, given.json))
    except OSError as error:
        sys.exit(f"kills: {error}")
