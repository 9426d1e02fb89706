"""The public face: what an editor completes is what the functions take."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import deepvit
from deepvit.commands import stub
from deepvit.experiments.grid import StudyOptions
from deepvit.options import options_of
from deepvit.tasks import TASKS
from deepvit.training.config import TrainConfig


def names_of(function: str) -> set[str]:
    tree = ast.parse(stub.file().read_text())
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}


def test_the_stub_is_what_the_options_say() -> None:
    """`python -m deepvit.commands.stub` writes it anew."""
    assert stub.file().read_text() == stub.stub()
    assert Path(deepvit.__file__).with_suffix(".pyi") == stub.file()


def test_every_option_has_its_name_in_the_stub() -> None:
    wanted = {name for task in TASKS for name in TrainConfig(task=task).options()}
    assert names_of("train") == wanted | {"config", "given"}
    assert {option.name for option in options_of(StudyOptions)} | {"train", "recipe", "config"} == names_of(
        "study"
    )
    assert {"model", "data", "images", "attention_images", "class_names"} <= names_of("diagnose")


# The stub alone, in which what it imports may be anything; and with all that it imports, torch's types too.
@pytest.mark.parametrize("follow", ["skip", pytest.param("silent", marks=pytest.mark.slow)])
def test_a_type_checker_reads_it(tmp_path: Path, follow: str) -> None:
    mypy = pytest.importorskip("mypy.api")
    path = tmp_path / "own.py"
    path.write_text(
        "import deepvit\ndeepvit.train(epochs=3)\ndeepvit.train(epoch=3)\ndeepvit.train(lr='x')\n"
    )
    options = [f"--follow-imports={follow}", "--ignore-missing-imports", f"--cache-dir={tmp_path / 'cache'}"]
    own = [str(path), *([str(stub.file())] if follow == "skip" else [])]
    text, _, _ = mypy.run([*options, "--config-file=", *own])
    assert 'Unexpected keyword argument "epoch"' in text
    assert 'Argument "lr" to "train" has incompatible type "str"' in text
    assert "own.py:2" not in text


def test_what_is_public_is_there() -> None:
    for name in deepvit.__all__:
        assert getattr(deepvit, name) is not None, name
    assert {"CollapseProbe", "CollapseMonitor", "CollapseTrainerCallback"} <= set(dir(deepvit))
