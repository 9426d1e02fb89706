"""``kills.py``: runs that are ended anywhere go on as if nothing had been, here in smaller numbers than the record has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECORDS = Path(__file__).parents[2] / "benchmarks" / "results"
SCRIPT = str(Path(__file__).parent / "kills.py")


def kills(tmp_path: Path, count: int, *words: str) -> dict[str, Any]:
    record = tmp_path / "record.json"
    command = [sys.executable, SCRIPT, str(count), "3", str(tmp_path / "out"), "--json", str(record), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    if "no tmpfs can be mounted here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads(record.read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_go_on(tmp_path: Path) -> None:
    found = kills(tmp_path, 40, "--tmpdir", "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp")
    assert found["equal"] == 40
    assert found["killed"] > 35


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_whose_disk_was_full_go_on(tmp_path: Path) -> None:
    found = kills(tmp_path, 40, "--full")
    assert found["equal"] == 40
    assert found["killed"]
    assert found["said_in_one_line"]


@pytest.mark.parametrize("name", ["kills", "kills_full"])
def test_the_records_are_of_what_is_promised(name: str) -> None:
    found = json.loads((RECORDS / f"{name}.json").read_text())
    assert found["equal"] == found["runs"] >= 100
    assert found["tmpdir_on_another_file_system"]
    named = {case["at"].split()[0] for case in found["cases"]}
    assert {"stream", "bytes", "rename", "fsync", "step", "update", "validation"} <= named
