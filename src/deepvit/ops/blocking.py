"""How much of the maps is in memory at once: whole images, or some query rows of one image.

One buffer holds the maps of all heads of a block. Small buffers stay in the processor's cache; large ones
have fewer and larger matrix products, and fewer calls.
"""

from __future__ import annotations

from typing import NamedTuple

_CACHE_BYTES = 2 << 20
"""Bytes of one buffer of maps (all heads) on a processor."""
_DEVICE_BYTES = 256 << 20
"""The same on an accelerator, where a launch costs more than memory."""


class Blocks(NamedTuple):
    """Images and query rows handled at once; either images == 1 or rows == N."""

    images: int
    rows: int


def plan(batch: int, heads: int, tokens: int, itemsize: int, device: str, sweeps: int) -> Blocks:
    """Blocks for maps of ``batch`` x ``heads`` x ``tokens`` x ``tokens`` entries of ``itemsize`` bytes.

    ``sweeps``: 1 for the forward sweep, 2 for the backward one.
    """
    limit = _CACHE_BYTES if device == "cpu" else _DEVICE_BYTES
    row = heads * tokens * itemsize
    if row * tokens > limit:
        # as many equal blocks as are needed
        count = -(-row * tokens // limit)
        return Blocks(1, -(-tokens // count))
    return Blocks(max(1, min(batch, limit // (row * tokens))), tokens)
