"""The command line: each command is a function of the package with the same name and options.

Work is imported when its command runs, so that help and errors come at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepvit.errors import UserError


@dataclass(frozen=True)
class Command:
    """A command: one line of help, where its function is, and its positional arguments."""

    help: str
    function: str  # "module:name"
    show: str  # "module:name": prints what the function returned
    positional: tuple[tuple[str, str | None], ...] = ()  # (name, nargs)
    config: str | None = None  # "module:Dataclass" whose fields are the options; otherwise the function's own
    given: bool = False  # the function also takes the names of the options that were given


COMMANDS: dict[str, Command] = {
    "train": Command(
        "train a classifier: any timm model, cures and diversity losses",
        "deepvit.training.run:train",
        "deepvit.training.run:show",
        config="deepvit.training.config:TrainConfig",
        given=True,
    ),
    "evaluate": Command(
        "top-1, top-5 and loss of a run on a data set",
        "deepvit.training.inference:evaluate",
        "deepvit.training.inference:show_evaluation",
        (("run", None),),
    ),
    "predict": Command(
        "labels of photographs, with probabilities",
        "deepvit.training.inference:predict",
        "deepvit.training.inference:show_predictions",
        (("run", None), ("images", "+")),
    ),
    "diagnose": Command(
        "collapse report of any Vision Transformer",
        "deepvit.loading:diagnose",
        "deepvit.loading:show_diagnosis",
        (("model", None),),
    ),
    "compare": Command(
        "runs side by side: accuracy, cost, collapse, curves",
        "deepvit.experiments.compare:compare",
        "deepvit.experiments.compare:show",
        (("runs", "+"),),
    ),
    "study": Command(
        "depths x methods x seeds: table, figure and report",
        "deepvit.experiments.study:study",
        "deepvit.experiments.study:show",
        (("recipe", None),),
        config="deepvit.experiments.grid:StudyConfig",
    ),
    "convert": Command(
        "official checkpoints to safetensors",
        "deepvit.models:convert",
        "deepvit.loading:show_conversion",
        (("src", None), ("dst", None)),
    ),
    "benchmark": Command(
        "speed and memory against the peers",
        "deepvit.benchmarking.run:benchmark",
        "deepvit.benchmarking.run:show",
        (("suite", None),),
    ),
    "list": Command(
        "models, cures, recipes or data that there are",
        "deepvit.experiments.listing:listing",
        "deepvit.experiments.listing:show",
        (("what", None),),
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a user's mistake (one line), 130 after an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        import deepvit

        print(f"deepvit {deepvit.__version__}")
        return 0
    name = arguments[0]
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
            raise UserError(f"no command is called {name!r}; {hint}")
        quieten()
        run(name, arguments[1:])
    except UserError as error:
        print(f"deepvit {name}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"deepvit {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def overview() -> str:
    """The commands, one a line."""
    lines = [
        "usage: deepvit COMMAND ...",
        "",
        "Train Vision Transformers deep: see attention collapse, cure it, prove it.",
        "",
    ]
    lines += [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "deepvit COMMAND --help shows the options; deepvit train --data digits needs nothing else."]
    return "\n".join(lines)


def run(name: str, arguments: list[str]) -> None:
    """Parse the arguments of a command, call its function and print what it returned."""
    command = COMMANDS[name]
    parser, kinds = build_parser(name, command)
    if command.config is None:
        values = parser.parse_args(normalise(arguments, kinds)).as_dict()
        values.pop("config", None)
        load(command.show)(load(command.function)(**values))
        return
    first: list[str] = []
    # A recipe comes first: a file of options, which those on the command line replace.
    if command.positional and not {"-h", "--help"} & set(arguments):
        if not arguments or arguments[0].startswith("-"):
            what = command.positional[0][0]
            raise UserError(f"name a {what} first: deepvit {name} quickstart (deepvit list {what}s)")
        first, arguments = [arguments[0]], ["--config", *arguments]
    words = normalise(arguments, kinds)
    parsed = parser.instantiate(parser.parse_args(words))
    schema: Any = load(command.config)
    config = schema(**{f.name: parsed[f.name] for f in dataclasses.fields(schema)})
    extra = {"given": given_options(words)} if command.given else {}
    load(command.show)(load(command.function)(*first, config=config, **extra))


def given_options(words: list[str]) -> set[str]:
    """Names of the options in a normalised command line and in the files that its ``--config`` names."""
    names: set[str] = set()
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            names.add(re.split(r"[.=]", word[2:], maxsplit=1)[0])
        if word == "--config":
            import yaml

            names |= set(yaml.safe_load(Path(value).read_text()) or {})
    return names - {"config"}


def load(path: str) -> Callable[..., Any]:
    """Import ``module:name``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]


def build_parser(name: str, command: Command) -> tuple[Any, dict[str, str]]:
    """The parser of a command, made from its dataclass or its function's signature, and what kind its options are."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UserError(f"{explain(message, known)} (deepvit {name} --help)") from None

    positional = {argument for argument, _ in command.positional}
    shown = " ".join(f"{a.upper()}{' ...' if nargs else ''}" for a, nargs in command.positional)
    parser = OneLineParser(
        prog=f"deepvit {name}",
        allow_abbrev=False,  # --epoch for --epochs would read well in one version and be another option in the next
        usage=f"deepvit {name} {shown}{' ' if shown else ''}[options]",
        description=command.help[0].upper() + command.help[1:] + ".",
    )
    source = load(command.config or command.function)
    documented = parameter_docs(source)
    for argument, nargs in command.positional if command.config is None else ():
        extra = {} if nargs is None else {"nargs": nargs}
        parser.add_argument(argument, type=str, help=documented.get(argument, ""), **extra)
    if command.config is not None:
        parser.add_argument("--config", action="config", help="YAML file of options, or the name of a recipe")
        parser.add_class_arguments(source, skip=positional, as_group=False)
    else:
        parser.add_function_arguments(source, skip=positional, as_group=False)
    for action in parser._actions:
        if isinstance(action.help, str):
            action.help = without_markup(action.help)
    known: set[str] = {o.lstrip("-") for a in parser._actions for o in a.option_strings if o.startswith("--")}
    kinds: dict[str, str] = {}
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        kind = "switch" if hint is bool else "list" if typing.get_origin(hint) is list else ""
        kinds |= dict.fromkeys(action.option_strings, kind)
    return parser, kinds


def without_markup(text: str) -> str:
    """A docstring's text as a terminal shows it: no roles, no doubled backticks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "")


def parameter_docs(source: Any) -> dict[str, str]:
    """The ``Args:`` section of a docstring as name → text."""
    import docstring_parser

    parsed = docstring_parser.parse(source.__doc__ or "")
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def normalise(arguments: list[str], kinds: dict[str, str]) -> list[str]:
    """The command line as jsonargparse wants it.

    Hyphens in option names become underscores, ``--model.KEY`` the model's argument, the name of a recipe its
    file, a switch without a value ``=true``, and ``0,1,2`` or ``0 1 2`` after an option that takes a list, a list.

    Args:
        arguments: words of the command line after the command.
        kinds: option → ``"switch"`` or ``"list"``, for options that are one.
    """
    words: list[str] = []
    for token in arguments:  # --option=value becomes two words, so that both ways are treated alike
        if not (token.startswith("--") and len(token) > 2):
            words.append(token)
            continue
        option, equals, value = token.partition("=")
        option = re.sub(
            r"^--((?:train\.)?)model\.", r"--\1model_args.", option.replace("-", "_").replace("__", "--", 1)
        )
        words += [option, value] if equals else [option]
    result: list[str] = []
    while words:
        option, kind = words[0], kinds.get(words.pop(0), "")
        result.append(option)
        if kind == "switch" and not (words and words[0].lower() in ("true", "false")):
            result[-1] += "=true"
        elif kind == "list" and words and not words[0].startswith(("--", "[")):
            values: list[str] = []
            while words and not words[0].startswith("--"):
                values += [part.strip() for part in words.pop(0).split(",")]
            result.append(json.dumps([int(v) if v.lstrip("-").isdigit() else v for v in values if v]))
        elif option == "--config" and words:
            result.append(recipe_file(words.pop(0)))
    return result


def recipe_file(text: str) -> str:
    """A path that exists as it is, else the file of the recipe of that name."""
    if Path(text).exists():
        return text
    from deepvit import recipes

    return str(recipes.find(text))


def explain(message: str, known: set[str]) -> str:
    """jsonargparse's message as one line, with the nearest option where an unknown one was given."""
    unknown = re.search(r"[Uu]nrecognized arguments: (--[\w.]+)", message)
    if unknown:
        option = unknown.group(1)
        near = difflib.get_close_matches(option.lstrip("-"), known, n=2, cutoff=0.5)
        return f"unknown option {option}" + (
            f"; did you mean {' or '.join('--' + n for n in near)}?" if near else ""
        )
    return one_line(message)


def one_line(text: str) -> str:
    """A message on one line."""
    return " ".join(text.split())


def quieten() -> None:
    """Keep other libraries' warnings off the screen: what they say about themselves is not about the user's work."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchvision|timm|jsonargparse)(\..*)?$")


if __name__ == "__main__":
    sys.exit(main())
