"""Disks that are full, gone, read-only or no disks at all, and terminals of ASCII: one line, exit code 2, nothing half."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults.kills import fill, small_disk
from PIL import Image
from training.test_trust import TINY

from deepvit.files import atomic_path
from deepvit.runs.lock import NAME as LOCK

SLOW = """
import json, subprocess, sys
from deepvit.cli import main
from deepvit.training.trainee import Trainee
step, number = Trainee.training_step, 0
def at_the_sixth(*a):
    global number
    number += 1
    if number == 6:
        subprocess.run(json.loads(sys.argv[1]), check=True)
    return step(*a)
Trainee.training_step = at_the_sixth
sys.exit(main(sys.argv[2:]))
"""
"""A run in whose sixth step a command is run."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path / "disk") as folder:
            yield folder
    except OSError as error:
        pytest.skip(str(error))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY))
    return file


def deepvit(*words: str, during: list[str] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    start = ["-m", "deepvit"] if during is None else ["-c", SLOW, json.dumps(during)]
    return subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=300,
    )


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr[-2000:]
    assert len(lines) == 1, done.stderr[-2000:]
    assert all(word in lines[0] for word in said), lines[0]


def halves(folder: Path) -> list[str]:
    """Names of temporary files."""
    return [path.name for path in folder.rglob(".*") if path.name != LOCK]


def test_a_disk_that_is_full_from_the_start(disk: Path, config: Path) -> None:
    fill(disk, 0)
    refused(deepvit("train", "--config", str(config), "--out", str(disk / "run")), "No space left on device")
    assert not halves(disk)
    assert not (disk / "run" / "run.json").exists()


@pytest.mark.slow
def test_a_disk_that_becomes_full(disk: Path, config: Path) -> None:
    words = ["train", "--config", str(config), "--resume", "auto", "--out", str(disk / "run")]
    filling = [sys.executable, "-c", f"import os; os.system('cat /dev/zero > {disk}/filler 2> /dev/null')"]
    refused(deepvit(*words, during=filling), "No space left on device")
    assert not halves(disk)
    (disk / "filler").unlink()
    assert deepvit(*words).returncode == 0


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(disk: Path, config: Path) -> None:
    words = ["train", "--config", str(config), "--resume", "auto", "--out", str(disk / "run")]
    # The lock is open for writing, which keeps a disk from becoming read-only: the same one is laid over it, read-only.
    over = f"mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}"
    refused(deepvit(*words, during=["sh", "-c", over]), "Read-only file system")
    subprocess.run(["umount", str(disk)], check=True)
    assert not halves(disk)
    assert deepvit(*words).returncode == 0


@pytest.mark.slow
def test_a_disk_that_goes_away(disk: Path, config: Path) -> None:
    words = ["train", "--config", str(config), "--out", str(disk / "run")]
    refused(deepvit(*words, during=["umount", "--lazy", str(disk)]), "is gone")
    assert not list(disk.iterdir())  # nothing was written to where the disk was


@pytest.mark.slow
def test_a_run_folder_that_somebody_removes(tmp_path: Path, config: Path) -> None:
    out = tmp_path / "run"
    refused(
        deepvit("train", "--config", str(config), "--out", str(out), during=["rm", "-r", str(out)]), "is gone"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("/dev/full/run", ["/dev/full/run", "Not a directory"]),
        pytest.param("/dev/full", ["/dev/full is a file"], marks=pytest.mark.slow),
        pytest.param("/proc/run", ["/proc/run", "cannot be written"], marks=pytest.mark.slow),
    ],
)
def test_places_that_are_no_folders(config: Path, out: str, said: list[str]) -> None:
    refused(deepvit("train", "--config", str(config), "--out", out), *said)


@pytest.mark.parametrize(
    "words", [["--help"], ["train", "--help"], pytest.param(["list", "models"], marks=pytest.mark.slow)]
)
def test_output_into_a_full_disk(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "deepvit", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "No space left on device" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else(tmp_path: Path, config: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(
        deepvit("train", "--config", str(config), "--out", str(tmp_path / "closed" / "run")),
        "Permission denied",
    )


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user, which root alone can be")
def test_another_user(tmp_path: Path, config: Path) -> None:
    """Nobody, with a home that is not there: a run in a folder of nobody's, and none in one of ours."""
    for folder in (tmp_path, *tmp_path.parents):  # pytest's folders are private
        if folder.stat().st_uid == os.geteuid() and folder.name:
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "theirs").mkdir()
    shutil.chown(tmp_path / "theirs", 65534, 65534)

    def as_nobody(out: Path) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "deepvit", "train", "--config", str(config), "--out", str(out)]
        env = {**os.environ, "HOME": "/nonexistent"}
        return subprocess.run(
            words, capture_output=True, text=True, user=65534, group=65534, env=env, cwd="/"
        )

    try:
        subprocess.run([sys.executable, "-c", "import torch"], user=65534, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("nobody may not read this Python")
    refused(as_nobody(tmp_path / "ours"), "Permission denied")
    done = as_nobody(tmp_path / "theirs" / "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "theirs" / "run" / "run.json").exists()


ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


@pytest.mark.slow
def test_a_terminal_of_ascii(tmp_path: Path, config: Path) -> None:
    out = str(tmp_path / "run")
    for words in (
        ["train", "--config", str(config), "--out", out, "--progress", "true", "--diagnose_images", "8"],
        ["evaluate", out],
        ["diagnose", out, "--images", "8", "--out", str(tmp_path / "report")],
        ["compare", out, out, "--out", str(tmp_path / "compared")],
        ["list", "cures"],
        ["train", "--help"],
    ):
        done = deepvit(*words, **ASCII)
        assert done.returncode == 0, done.stderr[-2000:]
    json.loads((tmp_path / "report" / "collapse.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_names_beyond_ascii_in_a_terminal_of_ascii(tmp_path: Path) -> None:
    for name in ("chêne", "hêtre"):
        (tmp_path / "trees" / name).mkdir(parents=True)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "trees" / name / f"{number}.png")
    options: dict[str, Any] = {
        **TINY,
        "data": str(tmp_path / "trees"),
        "batch_size": 4,
        "epochs": 1,
        "losses": {},
    }
    del options["max_train_images"], options["max_val_images"]
    file = tmp_path / "trees.json"
    file.write_text(json.dumps(options))
    out = tmp_path / "run"
    done = deepvit("train", "--config", str(file), "--out", str(out), **ASCII)
    assert done.returncode == 0, done.stderr[-2000:]
    card = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert card["facts"]["class_names"] == ["chêne", "hêtre"]


def test_what_writes_a_file_may_fail_in_its_own_words(tmp_path: Path) -> None:
    """safetensors is written in Rust, and tells the system's error in a text."""

    class SafetensorError(Exception):
        pass

    from deepvit.errors import UserError

    def write() -> None:
        with atomic_path(tmp_path / "x") as path:
            path.write_text("half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(UserError, match="No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []
