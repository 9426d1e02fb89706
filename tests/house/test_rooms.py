"""The rooms import downward only and in no circle, and each library stays in the rooms that may use it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from house.table import LARGEST_SHARE, ORDER, PACKAGE, House, cycles, room_of, table

HOUSE = House()
TORCH_ONLY = ("ops", "losses", "collapse.metrics")
# These decide by module attributes; the registries of cures and losses say what answers a finding.
_BELOW = {"errors", "files", "provenance", "ops", "layers", "losses", "cures"}
NARROW = {
    "capturing": _BELOW,
    "collapse": {*_BELOW, "capturing"},
    "report": {*_BELOW, "capturing", "collapse"},
}
LIGHTNING = {"training"}


def test_every_file_stands_in_a_known_room() -> None:
    assert not HOUSE.unknown


def test_imports_point_downward() -> None:
    assert not HOUSE.upward, "\n".join(f"{own} imports {other}" for own, other in HOUSE.upward)


@pytest.mark.parametrize("graph", ["rooms", "modules"])
def test_nothing_imports_itself_in_a_circle(graph: str) -> None:
    circles = cycles(getattr(HOUSE, graph))
    assert not circles, "\n".join(" -> ".join(circle) for circle in circles)


def test_no_room_holds_too_much() -> None:
    assert {r: s for r, s in HOUSE.shares.items() if s > LARGEST_SHARE} == {}


@pytest.mark.parametrize("room", NARROW)
def test_rooms_that_know_little(room: str) -> None:
    assert HOUSE.rooms[room] <= NARROW[room]


def test_operator_losses_and_metrics_know_torch_only() -> None:
    wrong = []
    for module, names in HOUSE.names.items():
        if module.removeprefix(f"{PACKAGE}.").startswith(TORCH_ONLY):
            for name in names:
                top = name.split(".")[0]
                known = top in {"torch", PACKAGE, "triton", "__future__"} or top in sys.stdlib_module_names
                if not known:
                    wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_lightning_stays_in_its_room() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in HOUSE.names.items()
        for name in names
        if name.split(".")[0] in ("lightning", "pytorch_lightning") and room_of(module) not in LIGHTNING
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_classification_task_says_top1() -> None:
    wrong = [
        f"{path.relative_to(HOUSE.sources)}:{number}: {line.strip()}"
        for path in HOUSE.files.values()
        if not path.relative_to(HOUSE.sources).as_posix().startswith("tasks/classification")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search("top1|top5", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_data_loads_no_lightning() -> None:
    """In a fresh process and through all that it imports, a source opened and a batch made."""
    code = (
        "import sys\n"
        "from deepvit.data import InputSpec, Loaders\n"
        "next(iter(Loaders('digits', input=InputSpec(8), progress=False).train_dataloader()))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lightning', 'pytorch_lightning')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_room_for_odds_and_ends() -> None:
    odd = {"utils", "helpers", "common", "misc"}
    assert not [path for path in HOUSE.files.values() if odd & {path.stem, path.parent.name}]


@pytest.fixture
def crooked(tmp_path: Path) -> House:
    """A small package with every fault, each written in another way."""
    files = {
        "__init__.py": "from deepvit import models\n_PUBLIC = {'train': 'deepvit.training.run'}\n",
        "__main__.py": "from deepvit.cli import main\n",
        "cli.py": "def main():\n    from deepvit.training import run\n",
        "files.py": "import deepvit\n\ndef late():\n    return deepvit.train\n",  # upward, through the face
        "ops/__init__.py": "from deepvit.ops.core import mix\n",
        "ops/core.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..layers.attention import Layer\n",
        "layers/__init__.py": "",
        "layers/attention.py": "from deepvit.ops import mix\nimport numpy.linalg\n",
        "models/__init__.py": "HOLDER = 'deepvit.training.run:train'\nROOM = 'deepvit.training'\n",  # upward, by name
        "training/__init__.py": "",
        "training/run.py": "from . import config\n" + "#\n" * 20,
        "training/config.py": "from .run import train\n",
        "odds/config.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return House(tmp_path)


def test_the_table_sees_every_fault(crooked: House) -> None:
    assert crooked.unknown == ["odds"]
    assert crooked.upward == [
        ("deepvit.files", "deepvit.training.run"),
        ("deepvit.models", "deepvit.training.run"),
        ("deepvit.ops.core", "deepvit.layers.attention"),
    ]
    assert cycles(crooked.rooms) == [["layers", "ops", "layers"]]
    assert cycles(crooked.modules) == [
        ["deepvit.layers.attention", "deepvit.ops", "deepvit.ops.core", "deepvit.layers.attention"],
        ["deepvit.training.config", "deepvit.training.run", "deepvit.training.config"],
    ]
    assert crooked.arrows[("layers", "ops")] == 1
    assert crooked.arrows[("cli", "training")] == 1
    assert crooked.twice == {"config.py": ["odds/config.py", "training/config.py"]}
    assert "numpy.linalg" in crooked.names["deepvit.layers.attention"]
    assert max(crooked.shares, key=crooked.shares.__getitem__) == "training"
    text = table(crooked)
    assert [line.split()[0] for line in text.splitlines() if "% !" in line] == ["training"]
    assert "upward arrows: 3" in text
    assert "cycles between modules: 2" in text


def test_the_order_holds_each_room_once() -> None:
    assert len(set(ORDER)) == len(ORDER)
