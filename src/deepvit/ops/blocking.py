"""How much of the maps is in memory at once, and which lane computes what: whole images, or rows of one image.

One buffer holds the maps of all heads of a block. Measured with two lanes on two cores of an AMD EPYC (1 MiB of
second-level cache each), H = 12, D = 32, float32, each as time over scaled_dot_product_attention's, forward /
forward and backward, by the size of one buffer:

                 0.5 MiB    0.75 MiB   1 MiB      2 MiB      3 MiB      4 MiB
      17 tokens  1.0 / 1.1  1.0 / 1.0  1.0 / 1.1  1.0 / 1.1  1.0 / 1.3  1.0 / 1.0
      65 tokens  1.5 / 1.5  1.4 / 1.3  1.4 / 1.2  1.4 / 1.3  1.5 / 1.2  1.5 / 1.2
     197 tokens  1.5 / 1.8  1.5 / 1.7  1.5 / 1.6  1.5 / 1.6  1.5 / 1.7  1.6 / 1.7
     577 tokens  1.7 / 1.8  1.5 / 1.5  1.5 / 1.6  1.5 / 1.5  1.5 / 1.5  1.5 / 1.6
    1025 tokens  2.3 / 2.3  2.0 / 2.1  2.1 / 2.0  2.0 / 1.8  1.9 / 1.8  1.9 / 1.8

Small blocks read the keys and values once for few rows; from 1 to 2 MiB on it hardly matters.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

_BUFFER_BYTES = 2 << 20
"""Bytes of one buffer of maps (all heads) on a processor; a lane has two of them forward and three backward."""
_SHARE_BYTES = 256 << 10
"""Maps that a lane must have to be worth waking: below, a handover costs as much as it saves."""
_DEVICE_BYTES = 256 << 20
"""The same on an accelerator, where a launch costs more than memory."""


NATIVE_ROWS = 24
"""Query rows that a compiled sweep holds the maps of, of all heads. Measured as above, forward / both, the native
backend's time over scaled_dot_product_attention's:

                    12 rows      24 rows      48 rows
      17 tokens   0.72 / 0.56  0.69 / 0.53  0.57 / 0.53
      65 tokens   0.91 / 0.87  0.89 / 0.85  0.89 / 0.86
     197 tokens   0.76 / 0.88  0.75 / 0.86  0.75 / 0.86
     577 tokens   0.96 / 0.96  0.95 / 0.96  0.95 / 0.95
    1025 tokens   1.08 / 1.17  1.09 / 1.15  1.17 / 1.12
    4097 tokens   1.09 / 1.14  1.08 / 1.11  1.12 / 1.16 (36 rows)
"""


class Piece(NamedTuple):
    """Some images with all their rows (``whole``), or some rows of one image."""

    images: slice
    rows: slice
    whole: bool


def share_rows(batch: int, heads: int, tokens: int, lanes: int) -> list[list[Piece]]:
    """What each lane of a compiled sweep does: nearly as many rows as the others.

    Lanes cut through an image where there are few of them only, since each of its lanes reads all keys and values.
    """
    lanes = max(1, min(lanes, batch * heads * tokens * tokens * 4 // _SHARE_BYTES))
    unit = tokens if batch >= 8 * lanes else 1
    total = batch * tokens // unit
    cuts = [total * lane // lanes * unit for lane in range(lanes + 1)]
    return [_pieces(start, stop, tokens) for start, stop in pairwise(cuts) if start < stop]


def _pieces(start: int, stop: int, tokens: int) -> list[Piece]:
    """Rows ``start`` to ``stop`` of all images' rows in a line."""
    found = []
    while start < stop:
        image, row = divmod(start, tokens)
        if row == 0 and stop - start >= tokens:
            after = stop // tokens
            found.append(Piece(slice(image, after), slice(0, tokens), True))
        else:
            after = image + 1
            rows = slice(row, min(tokens, stop - image * tokens))
            found.append(Piece(slice(image, after), rows, False))
        start = after * tokens
    return found


class Block(NamedTuple):
    """Images and query rows handled at once: either one image or all rows; ``number`` counts all blocks."""

    number: int
    images: slice
    rows: slice


def plan(batch: int, heads: int, tokens: int, itemsize: int, device: str, lanes: int) -> list[list[Block]]:
    """The blocks of each lane, in order, for maps of ``batch`` x ``heads`` x ``tokens`` x ``tokens`` entries.

    Blocks have nearly the same size, and lanes nearly the same number of them. An image's rows may be shared by
    neighbouring lanes.
    """
    one_image = heads * tokens * tokens * itemsize
    lanes = max(1, min(lanes, batch * one_image // _SHARE_BYTES))
    limit = _BUFFER_BYTES if device == "cpu" else _DEVICE_BYTES
    if one_image > limit or batch < lanes:
        count = -(-one_image // limit)  # of equal blocks an image
        while batch * count % lanes and count < tokens:
            count += 1
        step = -(-tokens // count)
        pieces = [(slice(i, i + 1), rows) for i in range(batch) for rows in _ranges(tokens, step)]
    else:
        count = -(-batch // max(1, limit // one_image))
        count = -(-count // lanes) * lanes
        pieces = [(images, slice(0, tokens)) for images in _ranges(batch, -(-batch // count))]
    blocks = [Block(number, *piece) for number, piece in enumerate(pieces)]
    lanes = min(lanes, len(blocks))
    bounds = [len(blocks) * lane // lanes for lane in range(lanes + 1)]
    return [blocks[start:stop] for start, stop in pairwise(bounds)]


def _ranges(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]
