"""Processes that have talked over gloo end in order, however late its threads are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from deepvit.runs.place import Place
from deepvit.training import leaving, meeting
from deepvit.training.processes import Team

# The collective is done, and gloo's thread wants Python's lock to drop the tensor; it does not get it before Python is taken
# down, as it may happen on a busy machine. Without settle() the process ends by SIGABRT, each time.
LATE = """
import atexit, sys, threading, time
def last():
    sys.setswitchinterval(1000)
    groups[1].allreduce([torch.ones(4)])
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    if sys.argv[1] == "with":
        settle()
atexit.register(last)  # what is registered first is called last
import torch, torch.distributed as dist
from deepvit.training.leaving import gloo_threads, settle
store, groups = dist.HashStore(), {}  # which the interpreter's end does not close, as with a sharded network
def join(rank):
    groups[rank] = dist.ProcessGroupGloo(store, rank, 2)
other = threading.Thread(target=join, args=(1,))
other.start(); join(0); other.join()
tensor = torch.ones(4)
tensor.known = "to Python"
groups[0].allreduce([tensor])  # waits for the other one
del tensor
time.sleep(0.2)
assert gloo_threads(), "gloo's threads have another name now"
"""


def ended(tmp_path: Path, how: str) -> int:
    (tmp_path / "late.py").write_text(LATE)
    done = subprocess.run([sys.executable, str(tmp_path / "late.py"), how], capture_output=True, timeout=100)
    return done.returncode


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the threads of a process")
def test_a_late_thread_of_gloo_does_not_abort_the_end(tmp_path: Path) -> None:
    assert ended(tmp_path, "with") == 0


def test_whoever_meets_others_ends_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[object] = []
    monkeypatch.setattr(leaving.atexit, "register", registered.append)
    monkeypatch.setattr(meeting.dist, "init_process_group", lambda *a, **k: None)
    place = Place(1, 2, 1, 2, "127.0.0.1", 5, "torchrun")
    meeting.connect(Team(place, "cpu"), dist.HashStore(), 5)
    assert registered == [leaving.settle]
