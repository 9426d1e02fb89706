"""Which blocks of a network an option means: ``all``, ``last:5``, ``0-3,8`` or a list of numbers."""

from __future__ import annotations

from collections.abc import Sequence

from deepvit.errors import UserError

_FORMS = "all, none, first:K, last:K, a-b, a,b,c, or a list of block numbers"


def parse_blocks(spec: str | int | Sequence[int] | None, depth: int) -> list[int]:
    """Block numbers, counted from 0, in ascending order and each once, that ``spec`` names.

    Args:
        spec: ``"all"``, ``"none"`` (also ``None``), ``"first:3"``, ``"last:5"``, ``"5-11"`` (both ends
            included), a list of those and of single numbers separated by commas (``"0,3,8-11"``), one
            number, or a sequence of numbers.
        depth: number of blocks in the network, at least 1.

    Raises:
        UserError: when the text is none of these forms, or names a block that the network does not have.
    """
    if depth < 1:
        raise UserError(f"depth={depth}: a network has at least one block")
    if spec is None:
        return []
    if isinstance(spec, str):
        numbers = [number for part in spec.split(",") for number in _parse_part(part.strip(), spec, depth)]
    else:
        numbers = [spec] if isinstance(spec, int) else list(spec)
        if any(not isinstance(n, int) or isinstance(n, bool) for n in numbers):
            raise UserError(f"blocks={spec!r}: expected {_FORMS}")
    for number in numbers:
        if not 0 <= number < depth:
            raise UserError(
                f"blocks={spec!r}: no block {number} in a network of {depth} blocks (0 to {depth - 1})"
            )
    return sorted(set(numbers))


def _parse_part(part: str, spec: str, depth: int) -> list[int]:
    """The numbers of one comma-separated part."""
    word = part.lower()
    if word == "all":
        return list(range(depth))
    if word == "none":
        return []
    head, colon, tail = word.partition(":")
    if colon and head in ("first", "last") and tail.isdecimal():
        count = int(tail)
        if count > depth:
            raise UserError(f"blocks={spec!r}: the network has only {depth} blocks")
        return list(range(count)) if head == "first" else list(range(depth - count, depth))
    low, dash, high = word.partition("-")
    if dash and low.isdecimal() and high.isdecimal():
        if int(low) > int(high):
            raise UserError(f"blocks={spec!r}: the range {part} runs backwards; write {high}-{low}")
        # Not range(): a slip like 0-10**12 should be an error about the depth, not a full memory.
        return list(range(int(low), min(int(high), depth) + 1)) if int(low) < depth else [int(low)]
    if word.isdecimal():
        return [int(word)]
    raise UserError(f"blocks={spec!r}: {part!r} is not understood; expected {_FORMS}")
