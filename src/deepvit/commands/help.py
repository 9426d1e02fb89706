"""Help in the terminal: what each command takes, in words, at the terminal's width."""

from __future__ import annotations

import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any

from deepvit.commands import NAMES
from deepvit.commands.command import Command
from deepvit.options import Option

INDENT = 30


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


def command_help(name: str, command: Command, words: list[str]) -> str:
    """Usage, what the command does, its arguments and its options by group."""
    width = min(shutil.get_terminal_size().columns, 120)
    shown = [f"{o.name.upper()}{' ...' if o.kind == 'list' else ''}" for o in command.positional]
    text = NAMES[name]
    lines = [
        f"usage: deepvit {' '.join([name, *shown])} [options]",
        "",
        *textwrap.wrap(text[0].upper() + text[1:] + ".", width),
        "",
    ]
    for option in command.positional:
        lines += entry(option.name.upper(), option.help, width)
    options = command.options(words)
    if command.config:
        lines += entry(
            "--config FILE", "YAML file of options, or the name of a recipe (deepvit list recipes)", width
        )
    group = None
    for option in options:
        if (title := group_of(option)) != group:
            group = title
            lines += ["", f"{title}:"] if title else [""]
        lines += entry(
            f"--{option.name} {value_name(option)}".rstrip(), option.help + told_default(option), width
        )
    return "\n".join(lines)


def group_of(option: Option) -> str:
    """Heading above an option: the group that it lies in."""
    return option.path[0] if len(option.path) > 1 else ""


def entry(left: str, text: str, width: int) -> list[str]:
    """An option at the left, its line folded at the right."""
    folded = textwrap.wrap(text, max(width - INDENT, 30)) or [""]
    head = f"  {left}"
    if len(head) >= INDENT:
        return [head, *(" " * INDENT + line for line in folded)]
    return [head.ljust(INDENT) + folded[0], *(" " * INDENT + line for line in folded[1:])]


def value_name(option: Option) -> str:
    """What is typed behind an option: ``NUMBER``, ``last|best``, ``KEY=...``; nothing for a switch."""
    if option.kind == "switch":
        return ""
    return typed(option.hint)


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
    return {int: "N", float: "X", str: "TEXT"}.get(hint, "VALUE")


def told_default(option: Option) -> str:
    """The default in brackets, where it says something."""
    value = option.default
    if option.required or value is None or value in ("", {}, [], False):
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = " ".join(map(str, value))
    return f" [{'on; --' + option.name + ' false' if value is True else value}]"
