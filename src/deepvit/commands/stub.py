"""The types of the public face for editors: ``src/deepvit/__init__.pyi``, in which every option of ``train`` has its name.

``train``, ``study`` and ``diagnose`` take options that are defined elsewhere, each once; what an editor completes is read
off those definitions. A test compares the file with them; ``python -m deepvit.commands.stub`` writes it anew.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import deepvit
from deepvit.commands.diagnose import diagnose
from deepvit.experiments.grid import StudyOptions
from deepvit.options import Option, options_of
from deepvit.report import diagnose as measure
from deepvit.tasks import TASKS
from deepvit.training.config import train_options

WRITTEN = ("diagnose", "study", "train")
HEAD = '''"""Types of the public face. Written by ``python -m deepvit.commands.stub``; not to be edited."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import nn

'''
TYPED = """from deepvit.collapse.lesions.score import Score
from deepvit.data import InputSpec
from deepvit.experiments.grid import StudyConfig
from deepvit.report import Report
from deepvit.report.sections import Section
from deepvit.runs import Run
from deepvit.training.config import TrainConfig
"""


def stub() -> str:
    """The text of the file."""
    lines = [f"from deepvit import {name} as {name}" for name in deepvit._MODULES]
    lines += [
        f"from {module} import {name} as {name}"
        for name, module in deepvit._PUBLIC.items()
        if name not in WRITTEN
    ]
    names = "\n".join(f"    {name!r}," for name in deepvit.__all__)
    options, nested = grouped(all_train_options())
    parts = [
        HEAD + TYPED + "\n".join(sorted(lines)),
        f"__version__: str\n_PUBLIC: dict[str, str]\n_MODULES: tuple[str, ...]\n__all__ = [\n{names}\n]",
        *(mapping(f"_{name.title().replace('_', '')}", inner) for name, inner in nested.items()),
        mapping("_Train", options, nested),
        function(
            "train",
            ["config: TrainConfig | None = None", "*", "given: Collection[str] | None = None"],
            options,
            "Run",
            nested,
        ),
        function(
            "study",
            ["recipe: str", "config: StudyConfig | None = None", "*", "train: _Train | TrainConfig = ..."],
            list(options_of(StudyOptions)),
            "dict[str, Any]",
        ),
        function("diagnose", diagnose_parameters(), [], "Report"),
    ]
    return "\n\n".join(parts) + "\n"


def all_train_options() -> list[Option]:
    """The options of training, those of every task among them, each once."""
    found: dict[str, Option] = {}
    for task in TASKS:
        for option in train_options(task):
            found.setdefault(option.name, option)
    return list(found.values())


def grouped(options: Iterable[Option]) -> tuple[list[Option], dict[str, list[Option]]]:
    """Options without a dot in their name, and those of each mapping (``augment.mixup``) by the mapping's name."""
    plain, nested = list[Option](), dict[str, list[Option]]()
    for option in options:
        outer, dot, inner = option.name.partition(".")
        if not dot:
            plain.append(option)
            continue
        if outer not in nested:
            plain.append(Option(outer, dict, ..., ""))
        nested.setdefault(outer, []).append(Option(inner, option.hint, option.default, option.help))
    return plain, nested


def mapping(name: str, options: Sequence[Option], nested: Iterable[str] = ()) -> str:
    """A mapping whose keys are options, none of which is required."""
    fields = "\n".join(f"    {option.name}: {kind(option, nested)}" for option in options)
    return f"class {name}(TypedDict, total=False):\n{fields}"


def function(
    name: str, first: Sequence[str], options: Sequence[Option], gives: str, nested: Iterable[str] = ()
) -> str:
    """A function with options behind its own parameters."""
    parameters = [*first, *(f"{o.name}: {kind(o, nested)} = {shown(o.default)}" for o in options)]
    inside = "\n".join(f"    {each}," for each in parameters)
    return f"def {name}(\n{inside}\n) -> {gives}: ..."


def diagnose_parameters() -> list[str]:
    """The parameters of ``deepvit.diagnose``, and those that it hands on."""
    own = inspect.signature(diagnose).parameters
    more = {name: each for name, each in inspect.signature(measure).parameters.items() if name not in own}
    handed = [each for each in more.values() if each.kind is each.KEYWORD_ONLY]
    taken = [each for each in own.values() if each.kind is not each.VAR_KEYWORD]
    own_network = "input: int | tuple[int, int] | InputSpec | None = None"
    return [*map(parameter, taken), "*", own_network, *map(parameter, handed)]


def parameter(each: inspect.Parameter) -> str:
    """A parameter as it is written in the source."""
    default = "" if each.default is each.empty else f" = {shown(each.default)}"
    return f"{each.name}: {each.annotation}{default}"


def kind(option: Option, nested: Iterable[str]) -> str:
    """The type of an option; of one that is a mapping of options, that mapping."""
    return f"_{option.name.title().replace('_', '')}" if option.name in nested else text_of(option.hint)


def text_of(hint: Any) -> str:
    """A type as it is written."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, inside))}]"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(text_of(each) for each in inside)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(text_of(each) for each in inside)}]"
    if hint is type(None):
        return "None"
    if hint is dict:
        return "dict[str, Any]"
    return "Any" if hint is Any else str(hint.__name__)


def shown(default: Any) -> str:
    """A default that a reader knows at a glance, else dots."""
    plain = default is None or isinstance(default, bool | int | float | str)
    return repr(default) if plain and default is not ... else "..."


def file() -> Path:
    """Where the stub lies."""
    return Path(inspect.getfile(typing.cast(Callable[..., Any], deepvit))).with_name("__init__.pyi")


if __name__ == "__main__":
    from deepvit.files import write_atomic

    write_atomic(file(), stub())
