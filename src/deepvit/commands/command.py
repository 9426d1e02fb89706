"""What a command is: a function of the package with the same name and options, and how its result is printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deepvit.options import Option, parameters_of

PYTHON_ONLY = ("config", "given", "data_args")
"""Parameters that take objects: all options at once, for callers in Python."""


def succeeded(result: Any) -> int:
    """Exit code 0, whatever the result."""
    return 0


@dataclass(frozen=True)
class Command:
    """A command; its positional arguments are the parameters of its function that have no default.

    Attributes:
        function: does the work; it gets only what was given.
        show: prints what the function returned.
        more: options beyond the function's own parameters, by the words of the command line: a task may have its own.
        config: whether ``--config FILE`` gives options too.
        examples: command lines that help shows.
        code: the exit code that a result means, for commands that answer yes or no by it.
        of_task: what ``more`` gives, by a kind of task instead of the words: for commands that name a run first.
    """

    function: Callable[..., Any]
    show: Callable[[Any], None]
    more: Callable[[list[str]], Sequence[Option]] | None = None
    config: bool = False
    examples: tuple[str, ...] = ()
    code: Callable[[Any], int] = succeeded
    of_task: Callable[[Any], Sequence[Option]] | None = None

    @property
    def positional(self) -> list[Option]:
        """What comes first on the command line."""
        return [option for option in parameters_of(self.function) if option.required]

    def options(self, words: list[str]) -> list[Option]:
        """What may be given as ``--name value`` beside these words."""
        return [*self.own, *(self.more(words) if self.more else ())]

    @property
    def own(self) -> list[Option]:
        """The options that do not depend on what is named."""
        return [o for o in parameters_of(self.function) if not o.required and o.name not in PYTHON_ONLY]


def value_after(words: list[str], option: str) -> str | None:
    """The value that a command line gives an option, before it is parsed in earnest."""
    for word, value in zip(words, [*words[1:], ""], strict=False):
        name, equals, text = word.partition("=")
        if name.replace("-", "_") == option.replace("-", "_"):
            return text if equals else value
    return None
