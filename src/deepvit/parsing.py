"""From words or a YAML file to values of options, by jsonargparse: types are checked, what was given is known.

Only what was given comes back: defaults are those of the dataclass or function that the options were read from.
"""

from __future__ import annotations

import argparse
import json
import re
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from deepvit.errors import UserError
from deepvit.files import read_text
from deepvit.options import Option, check_names


def parser_of(options: Iterable[Option], positional: Sequence[Option] = (), *, config: bool = False) -> Any:
    """jsonargparse's parser of these options.

    Args:
        options: what may be given.
        positional: what comes first on a command line, in this order; the last one may be a list.
        config: whether ``--config FILE`` reads options from a YAML file.
    """
    from jsonargparse import ArgumentParser

    # --epoch for --epochs would read well in one version and be another option in the next.
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for option in positional:
        extra = {"nargs": "+"} if option.kind == "list" else {}
        parser.add_argument(option.name, type=str, **extra)
    if config:
        parser.add_argument("--config", action="config")
    for option in options:
        parser.add_argument(f"--{option.name}", type=option.hint, default=option.default)
    return parser


def parse_words(
    words: list[str], options: Sequence[Option], positional: Sequence[Option] = (), *, config: bool = False
) -> dict[str, Any]:
    """The values that a command line gives, by option name; those of its ``--config`` files are among them.

    Raises:
        UserError: an option that does not exist, with the nearest; a value of another type; a word too much or too few.
    """
    ready = normalise(words, {f"--{option.name}": option.kind for option in options})
    parser = parser_of(options, positional, config=config)
    try:
        given = parser.parse_args(ready, defaults=False).as_dict()
    except (argparse.ArgumentError, TypeError) as error:
        raise UserError(explain(str(error), options, positional)) from None
    given.pop("config", None)
    return dict(given)


def checked(values: dict[str, Any], options: Sequence[Option], what: str, hint: str = "") -> dict[str, Any]:
    """Values by option name, from YAML or a Python call, with their types checked.

    Raises:
        UserError: a name that is no option, with the nearest; a value of another type, named.
    """
    names = list(dict.fromkeys(option.name.partition(".")[0] for option in options))
    check_names(values, names, what, hint)
    for name, value in values.items():
        inner = [o.name.partition(".")[2] for o in options if o.name.startswith(f"{name}.")]
        if inner and not isinstance(value, dict):
            raise UserError(
                f"{name} has options of its own ({', '.join(inner[:4])}, ...): give a mapping, not {value!r}"
            )
        if inner:
            check_names(value, inner, name)
    ready = json_ready(values)
    try:
        return dict(parser_of(options).parse_object(ready, defaults=False).as_dict())
    except (argparse.ArgumentError, TypeError) as error:
        raise UserError(explain(str(error), options)) from None


def json_ready(values: Any) -> Any:
    """Values as YAML would give them: mappings and lists all the way down."""
    if isinstance(values, dict):
        return {str(k): json_ready(v) for k, v in values.items()}
    return [json_ready(v) for v in values] if isinstance(values, list | tuple | set) else values


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """A YAML file that holds a mapping of names to values.

    Raises:
        UserError: no such file, no text, no YAML, one that is too large once its anchors are written out, or no mapping.
    """
    text = read_text(path, _MOST_YAML)
    try:
        _check_brackets(text)
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader))
        value = yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{path} cannot be read as YAML: it is nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} cannot be read as YAML: {' '.join(str(error).split()) or '?'}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no {what} (a mapping of names to values is expected)")
    return value


_MOST_YAML, _MOST_VALUES, _DEEPEST = 256 * 1024, 50_000, 50


def _check_brackets(text: str) -> None:
    """Refuse brackets within brackets without end before the parser sees them, whose time grows with their square."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        if depth > 4 * _DEEPEST:
            raise yaml.YAMLError("it is nested too deep")


def _check_size(root: yaml.Node | None) -> None:
    """Refuse what is harmless as text and not as values: anchors within themselves, or that multiply."""
    sizes: dict[int, int] = {}
    open_: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if depth > _DEEPEST:
            raise yaml.YAMLError("it is nested too deep")
        if id(node) in open_:
            raise yaml.YAMLError("an anchor holds itself")
        if id(node) not in sizes:
            open_.add(id(node))
            inner: list[yaml.Node] = []
            if isinstance(node, yaml.SequenceNode):
                inner = node.value
            elif isinstance(node, yaml.MappingNode):
                inner = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(size(part, depth + 1) for part in inner)
            open_.discard(id(node))
        if sizes[id(node)] > _MOST_VALUES:
            raise yaml.YAMLError(f"it holds more than {_MOST_VALUES} values")
        return sizes[id(node)]

    if root is not None:
        size(root, 0)


def normalise(arguments: list[str], kinds: dict[str, str]) -> list[str]:
    """The command line as jsonargparse wants it.

    Hyphens in option names become underscores, ``--model.KEY`` the model's argument and ``--data.KEY`` the data
    source's, ``--device`` the ``--devices`` of a command that has only these (and the reverse), the name of a recipe its
    file, a switch without a value ``=true``, and ``0,1,2`` or ``0 1 2`` after an option that takes a list, a list.

    Args:
        arguments: words of the command line after the command.
        kinds: option → ``"switch"`` or ``"list"``, for options that are one; others may be there with another kind.
    """
    words: list[str] = []
    for token in arguments:  # --option=value becomes two words, so that both ways are treated alike
        if not (token.startswith("--") and len(token) > 2):
            words.append(token)
            continue
        option, equals, value = token.partition("=")
        option = option.replace("-", "_").replace("__", "--", 1)
        option = re.sub(r"^--((?:train\.)?)(model|data)\.", r"--\1\2_args.", option)
        option = spelling(option, kinds)
        words += [option, value] if equals else [option]
    result: list[str] = []
    while words:
        option, kind = words[0], kinds.get(words.pop(0), "")
        result.append(option)
        if kind == "switch" and not (words and words[0].lower() in ("true", "false", "auto")):
            result[-1] += "=true"
        elif kind == "list" and words and not words[0].startswith(("--", "[")):
            values: list[str] = []
            while words and not words[0].startswith("--"):
                values += [part.strip() for part in words.pop(0).split(",")]
            result.append(json.dumps([number(v) for v in values if v]))
        elif option == "--config" and words:
            result.append(recipe_file(words.pop(0)))
            read_yaml(result[-1], "options")  # what the parser would make of a bad file is told here
    return result


def spelling(option: str, known: Collection[str]) -> str:
    """``--device`` or ``--devices``, whichever the command has: a run takes several, an evaluation one."""
    other = option.removesuffix("s") if option.endswith("devices") else f"{option}s"
    alike = re.fullmatch(r"--(train\.)?devices?", option)
    return other if alike and option not in known and other in known else option


def number(text: str) -> int | float | str:
    """A word as the number that it is, or as it stands."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?(\d+\.\d*|\.\d+)", text) else text


def recipe_file(text: str) -> str:
    """A path that exists as it is, else the file of the recipe of that name."""
    if Path(text).exists():
        return text
    from deepvit import recipes

    return str(recipes.find(text))


def explain(message: str, options: Iterable[Option], positional: Sequence[Option] = ()) -> str:
    """jsonargparse's message in our words: the option, what it takes, what was given; the nearest of an unknown one."""
    import difflib

    known = {option.name: option for option in options}
    unknown = re.search(r"[Uu]nrecognized arguments?: *(\S*)", message)
    if unknown and unknown.group(1).startswith("--"):
        near = difflib.get_close_matches(unknown.group(1).lstrip("-"), known, n=2, cutoff=0.5)
        key = unknown.group(1).lstrip("-")
        # "--img_size" is meant for the model, and looks like no option of the command.
        own = "model_args" in known and key in ("img_size", "patch_size", "depth", "embed_dim", "num_heads")
        near = [f"model.{key}"] if own else near
        rest = f"; did you mean {' or '.join('--' + n for n in near)}?" if near else ""
        return f"unknown option {unknown.group(1)}{rest}"
    if unknown:
        return f"{unknown.group(1)!r} is one word too much: options start with --"
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        return f"{missing.group(1).strip()} is missing"
    unaccepted = re.search(r"Option '([^']+)' is not accepted", message)
    if unaccepted:
        near = difflib.get_close_matches(unaccepted.group(1), known, n=2, cutoff=0.5)
        rest = f"; did you mean {' or '.join(near)}?" if near else ""
        return f"no option is called {unaccepted.group(1)!r}{rest}"
    key = re.search(r'[Pp]arser key "([^"]+)"', message)
    if key and key.group(1) in known:
        value = re.search(r"(?:Given value|Got value): (.*)", message)
        given = f", not {value.group(1).strip()!r}" if value else ""
        meant = MEANT.get(value.group(1).strip().lower()) if value else None
        way = f"; say {meant}" if meant in typing.get_args(known[key.group(1)].hint) else ""
        return f"--{key.group(1)} takes {spoken(known[key.group(1)].hint)}{given}{way}"
    return " ".join(message.split())


MEANT = {
    "fp16": "16",
    "float16": "16",
    "half": "16",
    "bfloat16": "bf16",
    "fp32": "32",
    "float32": "32",
    "full": "32",
}
"""Other libraries' words for a value → ours."""


def spoken(hint: Any) -> str:
    """A type as a person says it: ``a number``, ``one of auto, 32``, ``a whole number, or nothing``."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inside))
    if origin in (typing.Union, types.UnionType):
        kinds = [spoken(kind) for kind in inside if kind is not type(None)]
        return " or ".join(kinds)
    if origin is list:
        return (
            f"a list of {spoken(inside[0]).removeprefix('a ').removeprefix('an ')}s" if inside else "a list"
        )
    if origin is tuple:
        return f"{len(inside)} numbers, as '[0.1, 1]'"
    if origin is dict or hint is dict:
        return "a mapping, as '{name: value}'"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
