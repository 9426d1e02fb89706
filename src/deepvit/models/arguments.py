"""Which arguments a model class takes and which values they can have, read from its signature."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import nn

_NUMERIC = (int, float)


def accepted(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Arguments by name; where a class hands ``**kwargs`` on to its base, the base's are included."""
    builds = build.__mro__ if isinstance(build, type) else (build,)
    found: dict[str, inspect.Parameter] = {}
    for part in builds:
        if part in (nn.Module, object) or (isinstance(part, type) and "__init__" not in vars(part)):
            continue
        function = vars(part)["__init__"] if isinstance(part, type) else part
        hints, parameters = _hints(function), inspect.signature(function).parameters
        for name, parameter in parameters.items():
            if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(name, parameter.replace(annotation=hints.get(name, parameter.annotation)))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return found


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except Exception:  # a name that exists for type checkers only
        return {}


def ill_typed(build: Callable[..., Any], given: Mapping[str, Any], *, strict: bool) -> str | None:
    """The first argument whose value cannot be meant, as ``name=value must be …``, or ``None``.

    Text for a number or a switch, and the like, are always found. ``strict`` also finds a fraction for a
    whole
    number or a number for a name, which some timm signatures declare too narrowly: only for a build that
    failed.
    """
    for name, parameter in accepted(build).items():
        if name in given and not _possible(given[name], _annotation(parameter), strict):
            wanted = _wanted(_annotation(parameter))
            kind = "" if wanted.startswith("one of") else f", not {type(given[name]).__name__}"
            return f"{name}={given[name]!r} must be {wanted}{kind}"
    return None


def _annotation(parameter: inspect.Parameter) -> Any:
    """The declared type, else that of the default."""
    if parameter.annotation is not inspect.Parameter.empty and not isinstance(parameter.annotation, str):
        return parameter.annotation
    default = parameter.default
    return type(default) if isinstance(default, (bool, int, float, str)) else Any


def _possible(value: Any, wanted: Any, strict: bool) -> bool:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if value is None or wanted is Any or isinstance(wanted, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_possible(value, choice, strict) for choice in inner)
    if origin is Literal:
        return value in inner
    if wanted is bool:
        return isinstance(value, bool) or (not strict and value in (0, 1) and isinstance(value, int))
    if wanted in _NUMERIC:
        # timm writes `int` for sizes that may be pairs as well, so numbers in a row are let through.
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        kinds = (int,) if strict and wanted is int else _NUMERIC
        return all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if wanted is str:
        return not isinstance(value, (bool, int, float, list, tuple, dict)) or not strict
    if origin in (tuple, list, Sequence):
        if isinstance(value, (str, bool, dict)):
            return False
        if not isinstance(value, Sequence):
            return not strict
        kinds_inside = [kind for kind in inner if kind is not Ellipsis]
        return (
            all(any(_possible(v, kind, strict) for kind in kinds_inside) for v in value) or not kinds_inside
        )
    return True


def _wanted(annotation: Any) -> str:
    """A type in a reader's words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        words = [_wanted(choice) for choice in inner if choice is not type(None)]
        return " or ".join(dict.fromkeys(words))
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in inner)
    if origin in (tuple, list, Sequence):
        return "a list of numbers" if all(kind in (*_NUMERIC, Ellipsis) for kind in inner) else "a list"
    named = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}
    return named.get(annotation, getattr(annotation, "__name__", str(annotation)))
