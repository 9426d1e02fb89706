"""Measuring in a process of its own."""

from __future__ import annotations

import os
import signal

import pytest

from deepvit.benchmarking.measure import isolated
from deepvit.errors import UserError


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(100)
def test_a_process_that_is_ended_from_outside_is_not_waited_for() -> None:
    assert isolated(max, 3, 5) == 5
    with pytest.raises(UserError, match="memory ran out"):
        isolated(killed)
