"""Options, each defined once: a documented field of a dataclass, or a documented parameter of a function.

Command line, YAML files and Python calls are read from the same list. A dataclass may be nested (``group``) for the
code that uses it; whoever types an option sees one flat list of short names.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import docstring_parser

from deepvit.errors import UserError


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: as it is typed (``--name``), stands in YAML files and is given in Python.
        hint: its type.
        default: what holds when it is not given.
        help: one line.
        path: where it lies in the nested dataclass: names of the groups, then of the field.
        required: it has no default.
    """

    name: str
    hint: Any
    default: Any
    help: str
    path: tuple[str, ...] = ()
    required: bool = False

    @property
    def typed(self) -> str:
        """As help shows it: ``model.KEY`` for the arguments of the model, ``data.class_map`` for an option of the source."""
        outer, dot, last = self.name.rpartition("model_args")
        if dot and not last:
            return f"{outer}model.KEY"
        return re.sub(r"(^|\.)data_args\.", r"\1data.", self.name)

    @property
    def kind(self) -> str:
        """``"switch"``, ``"list"`` or ``""``: how its value is typed."""
        if self.hint is bool or bool in typing.get_args(self.hint):
            return "switch"
        return "list" if typing.get_origin(self.hint) is list else ""


def group(schema: type[Any]) -> Any:
    """A field that holds the options of another dataclass, which are typed as if they stood here."""
    return dataclasses.field(default_factory=schema, metadata={"group": True})


def spelt(name: str, **arguments: Any) -> Any:
    """A field whose option has another name than the field: ``model.args`` is typed ``--model_args``."""
    return dataclasses.field(metadata={"name": name}, **arguments)


def options_of(schema: type[Any]) -> tuple[Option, ...]:
    """The options of a dataclass in the order of its fields, those of its groups where the group stands."""
    if schema not in _READ:  # reading the documentation means parsing source
        _READ[schema] = _read(schema)
    return _READ[schema]


_READ: dict[Any, tuple[Option, ...]] = {}


def _read(schema: type[Any]) -> tuple[Option, ...]:
    hints = typing.get_type_hints(schema)
    docs = documented(schema)
    found: list[Option] = []
    for field in dataclasses.fields(schema):
        if field.metadata.get("group"):
            for inner in options_of(hints[field.name]):
                found.append(dataclasses.replace(inner, path=(field.name, *inner.path)))
            continue
        hint, name = hints[field.name], field.metadata.get("name", field.name)
        if dataclasses.is_dataclass(hint):  # --augment.mixup: a mapping in YAML and in Python
            for inner in options_of(typing.cast(type[Any], hint)):
                dotted = f"{name}.{inner.name}"
                found.append(dataclasses.replace(inner, name=dotted, path=(field.name, *inner.path)))
            continue
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        found.append(Option(name, hint, default, docs.get(field.name, ""), (field.name,), required))
    return tuple(found)


def parameters_of(function: Callable[..., Any]) -> tuple[Option, ...]:
    """The options of a function: its parameters, with the lines of its ``Args:`` section."""
    hints = typing.get_type_hints(function)
    docs = documented(function)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():  # **more is for callers in Python
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        default = None if required else parameter.default
        found.append(Option(name, hints.get(name, Any), default, docs.get(name, ""), (name,), required))
    return tuple(found)


def documented(source: Any) -> dict[str, str]:
    """Field or parameter → its line of documentation, without markup."""
    found: dict[str, str] = {}
    for one in (
        reversed(source.__mro__[:-1]) if isinstance(source, type) else (source,)
    ):  # fields may be inherited
        for parameter in docstring_parser.parse_from_object(one).params:
            found[parameter.arg_name] = plain(" ".join((parameter.description or "").split()))
    return found


def plain(text: str) -> str:
    """A docstring's text as a terminal shows it: no roles, no doubled backticks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def build(schema: type[Any], values: dict[str, Any]) -> Any:
    """A nested dataclass from values by option name; what is not given has its default.

    Every ``__post_init__`` sees the given values, as if the dataclasses had been called by hand.
    """
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.metadata.get("group"):
            arguments[field.name] = build(hints[field.name], values)
        elif (name := field.metadata.get("name", field.name)) in values:
            value, hint = values[name], hints[field.name]
            nested = dataclasses.is_dataclass(hint) and isinstance(value, dict)
            arguments[field.name] = build(typing.cast(type[Any], hint), value) if nested else value
    return schema(**arguments)


def flat(config: Any) -> dict[str, Any]:
    """Values by option name of a nested dataclass; what is typed with a dot is a mapping, as in a YAML file."""
    values: dict[str, Any] = {}
    for option in options_of(type(config)):
        value = config
        for part in option.path:
            value = getattr(value, part)
        where = values
        *outer, last = option.name.split(".")
        for part in outer:
            where = where.setdefault(part, {})
        where[last] = value
    return values


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two mappings of values as one: ``above`` wins, mappings in both are merged alike."""
    result = dict(below)
    for name, value in above.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def check_names(given: Iterable[str], known: Iterable[str], what: str, hint: str = "") -> None:
    """Refuse names that are no option, with the nearest that are.

    Raises:
        UserError: ``no {what} option is called ...``.
    """
    names = list(known)
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3)
            rest = f"; did you mean {', '.join(near)}?" if near else hint or f"; there are {', '.join(names)}"
            raise UserError(f"no {what} option is called {key!r}{rest}")
