"""The command line: each command is a function of the package with the same name and options.

Work is imported when its command runs, so that help and errors come at once.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
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


COMMANDS: dict[str, Command] = {
    "train": Command("train a classifier: any timm model, cures and diversity losses", "deepvit.training.run:train", "deepvit.training.run:show",
                     config="deepvit.training.config:TrainConfig"),
    "evaluate": Command("top-1, top-5 and loss of a run on a data set", "deepvit.training.inference:evaluate",
                        "deepvit.training.inference:show_evaluation",                         (("run", None),)),
    "predict": Command("labels of photographs, with probabilities", "deepvit.training.inference:predict",
                       "deepvit.training.inference:show_predictions",                        (("run", None), ("images", "+"))),
    "diagnose": Command("collapse report of any ViT", "deepvit.loading:diagnose", "deepvit.loading:show_diagnosis", (("model", None),)),
    "compare": Command("runs side by side: accuracy, cost, collapse, curves", "deepvit.experiments.compare:compare",
                       "deepvit.experiments.compare:show",                        (("runs", "+"),)),
    "study": Command("depths x methods x seeds: table, figure and report", "deepvit.experiments.study:study",
                     "deepvit.experiments.study:show",                      (("recipe", None),), config="deepvit.experiments.grid:StudyConfig"),
    "convert": Command("official checkpoints to safetensors", "deepvit.models:convert", "deepvit.loading:show_conversion",
                       (("src", None), ("dst", None))),
    "benchmark": Command("speed and memory against the peers", "deepvit.benchmarking.run:benchmark",
                         "deepvit.benchmarking.run:show", (("suite", None),)),
    "list": Command("models, cures, recipes or data that there are", "deepvit.experiments.listing:listing",
                    "deepvit.experiments.listing:show",                     (("what", None),)),
}  # fmt: skip


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
    lines = ["usage: deepvit COMMAND ...", "", "Train Vision Transformers deep: see attention collapse, cure it, prove it.", ""]
    lines += [f"  {name:<10} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "deepvit COMMAND --help shows the options; deepvit train --data digits needs nothing else."]
    return "\n".join(lines)


def run(name: str, arguments: list[str]) -> None:
    """Parse the arguments of a command and call its function."""
    command = COMMANDS[name]
    parser, flags = build_parser(name, command)
    parsed = parser.parse_args(normalise(arguments, flags))
    values: dict[str, Any] = parsed.as_dict() if command.config is None else dict(vars(parser.instantiate(parsed)))
    values.pop("config", None)
    load(command.show)(load(command.function)(**values))


def load(path: str) -> Callable[..., Any]:
    """Import ``module:name``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)  # type: ignore[no-any-return]


def build_parser(name: str, command: Command) -> tuple[Any, set[str]]:
    """The parser of a command, made from its dataclass or its function's signature, and the names of its switches."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class OneLineParser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UserError(f"{explain(message, known)} (deepvit {name} --help)") from None

    parser = OneLineParser(prog=f"deepvit {name}", description=command.help[0].upper() + command.help[1:] + ".")
    positional = {argument for argument, _ in command.positional}
    source = load(command.config or command.function)
    documented = parameter_docs(source)
    for argument, nargs in command.positional:
        extra = {} if nargs is None else {"nargs": nargs}
        parser.add_argument(argument, type=str, help=documented.get(argument, ""), **extra)
    if command.config is not None:
        parser.add_argument("--config", action="config", help="YAML file of options, or the name of a recipe")
        parser.add_class_arguments(source, skip=positional, as_group=False)
    else:
        parser.add_function_arguments(source, skip=positional, as_group=False)
    known: set[str] = {o.lstrip("-") for a in parser._actions for o in a.option_strings if o.startswith("--")}
    flags = {o for a in parser._actions if getattr(a, "_typehint", None) is bool for o in a.option_strings}
    return parser, flags


def parameter_docs(source: Any) -> dict[str, str]:
    """The ``Args:`` section of a docstring as name → text."""
    import docstring_parser

    parsed = docstring_parser.parse(source.__doc__ or "")
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def normalise(arguments: list[str], flags: set[str]) -> list[str]:
    """Hyphens in option names become underscores, ``--model.KEY`` the model's argument, a recipe's name its file."""
    result: list[str] = []
    for index, token in enumerate(arguments):
        if token.startswith("--") and len(token) > 2:
            option, equals, value = token.partition("=")
            option = "--" + re.sub(r"-", "_", option[2:])
            option = re.sub(r"^--((?:train\.)?)model\.", r"--\1model_args.", option)
            if option == "--config" and equals:
                value = recipe_file(value)
            token = option + equals + value
        elif index and arguments[index - 1] == "--config":
            token = recipe_file(token)
        result.append(token)
    # A switch without a value means true; jsonargparse asks for one.
    words = ("true", "false")
    return [
        f"{token}=true" if token in flags and (result[i + 1 : i + 2] or ["--"])[0].lower() not in words else token
        for i, token in enumerate(result)
    ]


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
        return f"unknown option {option}" + (f"; did you mean {' or '.join('--' + n for n in near)}?" if near else "")
    return one_line(message)


def one_line(text: str) -> str:
    """A message on one line."""
    return " ".join(text.split())


def quieten() -> None:
    """Keep other libraries' warnings off the screen: what they say about themselves is not about the user's work."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchvision|timm|jsonargparse)(\..*)?$")


if __name__ == "__main__":
    sys.exit(main())
