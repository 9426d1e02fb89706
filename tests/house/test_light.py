"""What comes into a fresh process: Lightning only where training asks for it, and ``import deepvit`` costs little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "lightning", "pytorch_lightning", "transformers", "matplotlib", "sklearn", "jsonargparse", "tensorboard",
    "triton.language",
}  # fmt: skip
IMPORT_LIMIT = 1.15


def fresh(code: str, *arguments: str, folder: Path | None = None) -> str:
    """The last line that a fresh interpreter prints for a piece of code."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


RUN_AND_LIST = """
import json, sys
from deepvit.cli import main
found = []
for words in sys.argv[1:]:
    try:
        code = main(words.split())
    except SystemExit as stop:
        code = stop.code
    loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("lightning", "pytorch_lightning"))
    found.append([words, code, loaded[:9]])
print()
print(json.dumps(found))
"""

DIAGNOSE = "diagnose vit_tiny_patch16_224 --model_args.depth 2 --images 2 --batch_size 2 --device cpu --data"


COMMANDS = (
    "--version",
    "diagnose --help",
    "compare --help",
    "benchmark --help",
    "convert --help",
    "list cures",
    "list models",
    f"{DIAGNOSE} digits --out report",
)


def test_lightning_stays_out_of_most_commands(tmp_path: Path) -> None:
    """One process for all, looked at after each: what stays out to the end stayed out of each, and starts take seconds."""
    found = json.loads(fresh(RUN_AND_LIST, *COMMANDS, folder=tmp_path))
    assert found == [[words, 0, []] for words in COMMANDS]


def test_training_does_load_lightning() -> None:
    """The check above can fail: the same list is not empty where Lightning is used."""
    ((_, _, loaded),) = json.loads(
        fresh(f"import deepvit; deepvit.CollapseMonitor\n{RUN_AND_LIST}", "--version")
    )
    assert loaded


def test_importing_the_package_brings_nothing_heavy() -> None:
    listing = f"import json, sys\nprint(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    both = [json.loads(fresh(f"import timm, torch{more}\n{listing}")) for more in ("", ", deepvit")]
    assert both[0] == both[1]  # whatever torch itself brings may stay


def test_importing_the_package_costs_little_more_than_timm() -> None:
    """Both imports in one process; the processor's time, since other tests run beside this one."""
    code = (
        "import time, timm\nbefore = time.process_time()\nimport deepvit\nprint(time.process_time() / before)"
    )
    assert min(float(fresh(code)) for _ in range(2)) < IMPORT_LIMIT


@pytest.mark.slow
def test_importing_the_package_alone_costs_little_more_than_timm() -> None:
    """In turn, each in its own process: timm, deepvit, timm, deepvit; the least of five each."""
    times: dict[str, list[float]] = {"timm": [], "deepvit": []}
    for _ in range(5):
        for name, found in times.items():
            found.append(float(fresh(f"import time, {name}\nprint(time.process_time())")))
    least = {name: min(found) for name, found in times.items()}
    assert least["deepvit"] < IMPORT_LIMIT * least["timm"], least
