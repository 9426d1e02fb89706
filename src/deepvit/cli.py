"""The command line: parse and dispatch. Each command is a function of the package with the same name and options."""

from __future__ import annotations

import difflib
import io
import logging
import os
import sys
import warnings
from pathlib import Path

from deepvit import __version__, commands
from deepvit.commands.command import Command
from deepvit.commands.help import command_help, overview
from deepvit.errors import UserError
from deepvit.files import READING, said_of_place
from deepvit.parsing import parse_words

HELP = ("-h", "--help")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: the command's own (0, but for ``check-data``), 2 for a user's mistake (one
    line), 130 after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal of ASCII gets a question mark, not a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = dispatched(arguments)
        sys.stdout.flush()  # what is behind a > may be full
        return code
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        give_up_output()
        return 1
    except OSError as error:
        said = said_of_place(error, here())
        if said is None:
            raise
        give_up_output()
        what = error.filename or "what is printed here"
        verb = "read or written" if error.errno in READING else "written"
        print(f"{' '.join(['deepvit', *arguments[:1]])}: {what} cannot be {verb}: {said}", file=sys.stderr)
        return 2


def dispatched(arguments: list[str]) -> int:
    """As ``main``, where output can be written."""
    if arguments[:1] == ["help"] and arguments[1:2]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in (*HELP, "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"deepvit {__version__}")
        return 0
    name = arguments[0]
    try:
        if name not in commands.NAMES:
            near = difflib.get_close_matches(name, commands.NAMES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands.NAMES)}"
            raise UserError(f"no command is called {name!r}; {hint}")
        quieten()
        return run(name, arguments[1:])
    except UserError as error:
        print(f"deepvit {name}: {one_line(str(error))}", file=sys.stderr)
        return 2
    except SystemExit as ended:  # a signal asked for it, and its code says so
        return ended.code if isinstance(ended.code, int) else 1
    except KeyboardInterrupt:
        print(f"deepvit {name}: interrupted", file=sys.stderr)
        return 130


def here() -> Path:
    """The working folder, or its name where somebody has removed it."""
    try:
        return Path.cwd()
    except OSError:
        return Path(".")


def give_up_output() -> None:
    """Let what is still to be printed go nowhere: Python would complain of it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(name: str, arguments: list[str]) -> int:
    """Parse the arguments of a command, call its function and print what it returned; the exit code that this means."""
    if set(HELP) & set(arguments):
        print(command_help(name, [word for word in arguments if word not in HELP]))
        return 0
    import deepvit.hubs.cured
    import deepvit.models  # noqa: F401  (both register with timm: the command line left it until now)
    from deepvit.runs.place import place

    if name not in ("train", "evaluate") and (here := place()) is not None and here.world > 1:
        if name == "study":
            raise UserError(
                f"{here.by} has started {here.world} processes: a study shares its runs out itself, by --jobs or --executor"
            )
        if here.rank:
            return 0
        print(f"deepvit {name} works in one process: the first of {here.world} does it", file=sys.stderr)

    command = commands.find(name)
    result = command.function(**values_of(name, command, arguments))
    command.show(result)
    return command.code(result)


def values_of(name: str, command: Command, arguments: list[str]) -> dict[str, object]:
    """What a command line gives, by parameter.

    Raises:
        UserError: words that are no option or no value of it; the text names the command's help.
    """
    try:
        return parse_words(arguments, command.options(arguments), command.positional, config=command.config)
    except UserError as error:
        raise UserError(f"{error} (deepvit {name} --help)") from None


def one_line(text: str) -> str:
    """A message on one line."""
    return " ".join(text.split())


def quieten() -> None:
    """Keep other libraries' warnings off the screen: what they say about themselves is not about the user's work."""
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchvision|timm|jsonargparse)(\..*)?$")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home that cannot be written


if __name__ == "__main__":
    sys.exit(main())
