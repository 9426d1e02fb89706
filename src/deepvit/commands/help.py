"""Help in the terminal: what each command takes, in words, at the terminal's width.

What help says is read off the commands and kept in ``help.json``, so that showing it loads neither torch nor timm; a test
compares the file with the commands, and ``python -m deepvit.commands.help`` writes it anew.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepvit import recipes
from deepvit.commands import NAMES, find
from deepvit.commands.command import value_after
from deepvit.files import read_json
from deepvit.options import Option
from deepvit.parsing import read_yaml

INDENT, WIDEST = 30, 110
GROUPS = {
    "model": "the network", "cure": "cures", "loss": "losses", "data": "data", "data_args": "data", "optim": "training",
    "result": "what is kept",
    "run": "where and how (may change when a run goes on)", "train": "every run",
}  # fmt: skip


def overview() -> str:
    """The commands, one a line."""
    lines = [
        "usage: deepvit COMMAND ...",
        "",
        "Train Vision Transformers deep: see attention collapse, cure it, prove it.",
        "",
        *(f"  {name:<10} {text}" for name, text in NAMES.items()),
        "",
        "deepvit COMMAND --help shows the options; deepvit train --data digits needs nothing else.",
    ]
    return "\n".join(lines)


def command_help(name: str, words: list[str]) -> str:
    """Usage, what the command does, examples, its arguments and its options by group."""
    task = value_after(words, "--task") or value_after(words, "--train.task") or task_named(name, words)
    known = stored()
    key = name if task is None else f"{name} {task}"
    said = known[key] if key in known else described(name, words)
    return rendered(said, min(shutil.get_terminal_size().columns, WIDEST))


def task_named(name: str, words: list[str]) -> str | None:
    """The task of the run, recipe or configuration that the words name, read without what trains it; None where none."""
    first = words[0] if words and not words[0].startswith("-") else None
    config = value_after(words, "--config")
    if (
        name in ("evaluate", "predict")
        and first is not None
        and (card := Path(first) / "model.json").exists()
    ):
        return str(read_json(card, "a model card").get("task") or "") or None
    if name == "study" and first is not None:
        train = read_yaml(recipes.find(first), "a recipe").get("train")
        return str(train.get("task") or "") or None if isinstance(train, dict) else None
    if name == "train" and config is not None:
        return str(read_yaml(recipes.find(config), "training options").get("task") or "") or None
    return None


def stored() -> dict[str, Any]:
    """What ``help.json`` holds: command, or command and task → what help says."""
    text = importlib.resources.files("deepvit.commands").joinpath("help.json").read_text("utf-8")
    return dict(json.loads(text))


def described(name: str, words: list[str], task: Any = None) -> dict[str, Any]:
    """What help says of a command, read off the command itself; ``task`` is that of the run that would be named."""
    command = find(name)
    chosen = command.options(words)
    if task is not None and command.of_task is not None:
        chosen = [*command.own, *command.of_task(task)]
    shown = [f"{o.name.upper()}{' ...' if o.kind == 'list' else ''}" for o in command.positional]
    options = [
        [f"--{o.typed} {value_name(o)}".rstrip(), o.help + told_default(o), group_of(o)] for o in chosen
    ]
    if command.config:
        text = "YAML file of options, or the name of a recipe (deepvit list recipes)"
        options.insert(0, ["--config FILE", text, ""])
    return {
        "usage": f"usage: deepvit {' '.join([name, *shown])} [options]",
        "text": NAMES[name][0].upper() + NAMES[name][1:] + ".",
        "examples": list(command.examples),
        "positional": [[o.name.upper(), o.help] for o in command.positional],
        "options": options,
    }


def rendered(said: dict[str, Any], width: int) -> str:
    """Help as text of so many columns."""
    lines = [said["usage"], "", *textwrap.wrap(said["text"], width), ""]
    lines += [*(f"  {example}" for example in said["examples"]), ""] if said["examples"] else []
    for left, text in said["positional"]:
        lines += entry(left, text, width)
    group = None
    for left, text, title in said["options"]:
        if title != group:
            group = title
            lines += ["", f"{title}:"] if title else [""]
        lines += entry(left, text, width)
    return "\n".join(lines)


def group_of(option: Option) -> str:
    """Heading above an option: the group that it lies in."""
    path = option.path[1:] if option.path[:1] == ("train",) else option.path
    return GROUPS.get(path[0], path[0]) if len(path) > 1 else ("every run" if path != option.path else "")


def entry(left: str, text: str, width: int) -> list[str]:
    """An option at the left, its line folded at the right; no word is broken."""
    folded = textwrap.wrap(text, max(width - INDENT, 30), break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
    head = f"  {left}"
    if len(head) >= INDENT:
        return [head, *(" " * INDENT + line for line in folded)]
    return [head.ljust(INDENT) + folded[0], *(" " * INDENT + line for line in folded[1:])]


def value_name(option: Option) -> str:
    """What is typed behind an option: ``NUMBER``, ``last|best``, ``KEY=...``; nothing for a switch."""
    if option.kind == "switch":
        return ""
    return "VALUE" if option.typed.endswith(".KEY") else typed(option.hint)


def typed(hint: Any) -> str:
    """A type as a placeholder."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(map(str, inside))
    if origin in (typing.Union, types.UnionType):
        kinds = list(dict.fromkeys(typed(kind) for kind in inside if kind is not type(None)))
        return kinds[-1] if "TEXT" in kinds else "|".join(kinds)
    if origin is list:
        return f"{typed(inside[0])} ..."
    if origin is tuple:
        return "'[A, B]'"
    if origin is dict:
        return "'{KEY: VALUE}'"
    return {int: "N", float: "X"}.get(hint, "TEXT")


def told_default(option: Option) -> str:
    """The default in brackets, where it says something."""
    value = option.default
    if option.required or value is None or value in ("", {}, [], False):
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = " ".join(map(str, value))
    if isinstance(value, dict):
        value = ", ".join(
            f"{key} {told:g}" if isinstance(told, float) else f"{key} {told}" for key, told in value.items()
        )
    return f" [{'on; --' + option.typed + ' false' if value is True else value}]"


def everything() -> dict[str, Any]:
    """What ``help.json`` should hold."""
    from deepvit.tasks import TASKS
    from deepvit.tasks import find as find_task

    said = {name: described(name, []) for name in NAMES}
    for task in TASKS:
        said[f"train {task}"] = described("train", ["--task", task])
        said[f"study {task}"] = described("study", ["--train.task", task])
        for name in ("evaluate", "predict"):
            said[f"{name} {task}"] = described(name, [], find_task(task))
    return said


if __name__ == "__main__":
    from deepvit.files import write_json

    write_json(Path(__file__).with_name("help.json"), everything())
