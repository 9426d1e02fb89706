"""Settings of all tests: one thread each (they run in several processes), and nothing from the network."""

from __future__ import annotations

import os
import shlex
import subprocess

# Before torch is imported, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["COLUMNS"] = "120"
# What the caller's shell was told about its own job is not said to the tests: those that ask about it set it themselves.
LAUNCHERS = {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
for name in [n for n in os.environ if n in LAUNCHERS or n.startswith("SLURM_")]:
    del os.environ[name]
# Nor is how it likes its output: tests read what is printed.
for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)


def _answers(compiler: str) -> bool:
    try:
        return subprocess.run([*shlex.split(compiler), "--version"], capture_output=True).returncode == 0
    except (OSError, ValueError):
        return False


# A compiler that does not work would take the compiled sweeps from every test; what is done then has tests of its own.
if os.environ.get("CXX") and not _answers(os.environ["CXX"]):
    del os.environ["CXX"]

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
