"""How a process that has talked over gloo ends: not before gloo's threads have let go of its tensors.

A thread of gloo tells that a collective is done *before* it drops the tensors of it. One that is slow (a busy machine) may
do so when Python is being taken down; a tensor that Python made wants the interpreter's lock then, which ends the thread in
the middle of C++, and with it the process: ``terminate called without an active exception``, SIGABRT, after everything was
done and saved (pytorch/pytorch#190489). ``destroy_process_group`` does not wait for those threads as long as anything, a
sharded network say, still knows the group.
"""

from __future__ import annotations

import atexit
import time
from pathlib import Path

THREADS = "pt_gloo_runloop"
"""What torch calls the threads in which gloo's collectives run."""
TASKS = Path("/proc/self/task")
QUIET = 3
"""So many looks in a row must find all of them asleep: one that sleeps for want of Python's lock gets it between two."""
PATIENCE = 30.0
"""Seconds after which the process ends all the same."""


def end_in_order() -> None:
    """Wait for gloo's threads when this process ends; once is enough."""
    atexit.unregister(settle)
    atexit.register(settle)


def settle() -> None:
    """Return when none of gloo's threads has anything left to do."""
    until, quiet = time.monotonic() + PATIENCE, 0
    while quiet < QUIET and time.monotonic() < until:
        states = gloo_threads()
        if not states:
            return
        quiet = quiet + 1 if set(states) == {"S"} else 0
        time.sleep(0.002)  # without Python's lock, which they may be waiting for


def gloo_threads() -> list[str]:
    """State of each of gloo's threads as the kernel tells it: "S" asleep, "R" running or waiting for a processor.

    Nothing where there is no such account (not Linux).
    """
    states = []
    for path in TASKS.glob("*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        if name.partition("(")[2] == THREADS:
            states.append(rest.split()[0])
    return states
