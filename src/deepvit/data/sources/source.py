"""What a data source is, and a registry of them: from a data string to the data, its table and its help."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deepvit.data.options import DataOptions
from deepvit.errors import UserError

Data = TypeVar("Data")


@dataclass(frozen=True)
class Source(Generic[Data]):
    """One place that data comes from; its file fills in this record.

    Attributes:
        name: what one types: a word (``digits``), or a scheme that ends in a slash (``torch/``) and is followed by a name;
            for local files what they are (``folder``), and ``claims`` tells them.
        forms: (form, what it means): rows of ``deepvit list data``.
        needs: what must be there: "nothing (built in)", "local files", "pip install ...".
        options: dataclass of the options that it takes; those are fields of ``DataOptions``, None = not given.
        open: (name, options) to the data; the name is the data string without the scheme. Raises ``UserError``.
        claims: whether a data string is this source's; None: by ``name``.
        known: names behind the scheme that there surely are, offered to who forgets the scheme.
    """

    name: str
    forms: tuple[tuple[str, str], ...]
    needs: str
    options: type[Any]
    open: Callable[[str, Any], Data]
    claims: Callable[[str], bool] | None = None
    known: tuple[str, ...] = ()

    @property
    def typed(self) -> bool:
        """Whether the name itself is typed."""
        return self.claims is None

    def takes(self, spec: str) -> bool:
        """Whether a data string is this source's."""
        if self.claims is not None:
            return self.claims(spec)
        if self.name.endswith("/"):
            return spec.startswith(self.name) and len(spec) > len(self.name)
        return spec == self.name

    def chosen(self, spec: str, options: DataOptions) -> Any:
        """Its own options out of all; ``UserError`` for one that was given and that it does not take."""
        known = [field.name for field in dataclasses.fields(self.options)]
        given = options.given()
        for name in given:
            if name not in known:
                has = f"it takes {', '.join(known)}" if known else "it takes no options"
                raise UserError(f"--data.{name} means nothing for {spec} ({has}); leave it out")
        return self.options(**given)


class Sources(Generic[Data]):
    """The sources of one kind of data, in the order in which they are asked."""

    def __init__(self, *sources: Source[Data]) -> None:
        self._sources = list(sources)

    def register(self, source: Source[Data]) -> Source[Data]:
        """Add a source; it is asked before those that are there. Raises ValueError when there is one of this name."""
        if any(known.name == source.name for known in self._sources):
            raise ValueError(f"there is a source {source.name!r} already")
        self._sources.insert(0, source)
        return source

    def __iter__(self) -> Any:
        return iter(self._sources)

    def find(self, spec: str) -> Source[Data]:
        """The source of a data string; ``UserError`` with the nearest names."""
        try:
            for source in self._sources:
                if source.takes(spec):
                    return source
        except (OSError, RuntimeError, ValueError) as error:  # a name too long, the home of nobody
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"data {spec[:60]!r} cannot be a place: {reason}") from None
        raise UserError(f"data {spec!r} does not exist{self._nearest(spec)}")

    def open(self, spec: str, options: DataOptions | None = None) -> Data:
        """The data of a string; ``UserError``, one line, for what a person can mend."""
        source = self.find(spec)
        chosen = source.chosen(spec, options or DataOptions())
        return source.open(spec.removeprefix(source.name) if source.name.endswith("/") else spec, chosen)

    def table(self) -> list[dict[str, str]]:
        """Rows for ``deepvit list data``: the form to give, what it means, what it needs, the options it takes."""
        return [
            {
                "data": form,
                "what": what,
                "needs": source.needs,
                "options": ", ".join(field.name for field in dataclasses.fields(source.options)) or "none",
            }
            for source in self._sources
            for form, what in source.forms
        ]

    def help(self) -> str:
        """The forms in one line, for ``--data``'s help: ``digits, FOLDER, FILE.tar, torch/NAME, ...``."""
        return ", ".join(dict.fromkeys(form for source in self._sources for form, _ in source.forms))

    def _nearest(self, spec: str) -> str:
        scheme, slash, rest = spec.partition("/")
        typed = [source.name for source in self._sources if source.typed]
        words = [name for name in typed if not name.endswith("/")]
        near = difflib.get_close_matches(spec.lower(), words, cutoff=0.6)
        if slash and rest:
            schemes = [name for name in typed if name.endswith("/")]
            near = [
                name + rest for name in difflib.get_close_matches(scheme.lower() + "/", schemes, cutoff=0.6)
            ]
        else:  # the name of a data set without that of its source
            whole = {name: source.name + name for source in self._sources for name in source.known}
            near = near or [
                whole[name] for name in difflib.get_close_matches(spec.lower(), whole, cutoff=0.8)
            ]
        offer = f"; did you mean {near[0]!r}?" if near else " (neither a folder, a .tar, nor a known name);"
        return offer + " `deepvit list data` shows what there is"
