"""The compact syntax: ``reattention,layerscale``, ``attnscale@last:6``, ``reattention+diversity``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from deepvit.cures.registry import CURES
from deepvit.errors import UserError

PLAIN, DIVERSITY = "plain", "diversity"


@dataclass(frozen=True)
class Wanted:
    """One cure that somebody asked for; ``blocks`` is None where they did not say."""

    name: str
    blocks: str | None = None

    def __str__(self) -> str:
        return self.name if self.blocks is None else f"{self.name}@{self.blocks}"


@dataclass(frozen=True)
class Method:
    """A method of a study: cures, in the syntax of ``--cures``, and whether diversity losses are on."""

    cures: str
    names: tuple[str, ...]
    diversity: bool


def parse(text: str | Iterable[str]) -> list[Wanted]:
    """Cures by name, joined by ``,`` or ``+``, each with blocks after ``@`` if wanted; or a sequence of such.

    ``"reattention,layerscale"``, ``"attnscale@last:6"``, ``"cut@3,8-11"``, ``["neutreno", "featscale@5-11"]``. Blocks
    are checked when the model is known. An empty text is no cure.

    Raises UserError for a name that is no cure (with the nearest), a name given twice, or a missing part.
    """
    pieces = _split(text) if isinstance(text, str) else [p for t in text for p in _split(t)]
    if pieces == [""]:
        return []
    wanted = []
    for piece in pieces:
        name, at, blocks = (part.strip() for part in piece.partition("@"))
        if not name or (at and not blocks):
            raise UserError(
                f"cures={text!r}: a part is empty; write for example reattention@last:12,layerscale"
            )
        if name not in CURES:
            raise UserError(f"there is no cure {name!r}{_nearest(name, list(CURES))}; see deepvit list cures")
        wanted.append(Wanted(name, blocks if at else None))
    names = [w.name for w in wanted]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"cures={text!r} names {name} twice; give it all its blocks at once")
    return wanted


def _split(text: str) -> list[str]:
    """The parts of a text; blocks behind others with a comma, as in ``cut@3,8-11``, belong to the cure before them."""
    parts: list[str] = []
    for part in text.replace("+", ",").split(","):
        if parts and "@" in parts[-1] and _BLOCKS.fullmatch(part.strip()):
            parts[-1] += f",{part.strip()}"
        else:
            parts.append(part)
    return parts


_BLOCKS = re.compile(r"\d+(\s*-\s*\d+)?|(first|last):\d+")


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def parse_method(text: str) -> Method:
    """A method of ``deepvit study``: ``plain``, ``diversity``, cures, and sums such as
    ``reattention+diversity``.

    Raises UserError for an unknown part, an empty one, one given twice, or ``plain`` together with others.
    """
    parts = [part.strip() for part in text.split("+")]
    if parts == [PLAIN]:
        return Method("", (), False)
    if PLAIN in parts:
        raise UserError(f"method {text!r}: plain stands alone")
    if parts.count(DIVERSITY) > 1:
        raise UserError(f"method {text!r} names diversity twice")
    known = [*CURES, PLAIN, DIVERSITY]
    for part in parts:
        name = part.partition("@")[0]
        if part != DIVERSITY and name not in CURES:
            why = " (diversity takes no blocks)" if name == DIVERSITY else _nearest(name, known)
            raise UserError(
                f"method {text!r}: there is no {part!r}{why}; parts are plain, diversity and cures"
            )
    wanted = parse([part for part in parts if part != DIVERSITY])
    return Method("+".join(map(str, wanted)), tuple(w.name for w in wanted), DIVERSITY in parts)
