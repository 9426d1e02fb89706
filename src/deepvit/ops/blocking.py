"""How much of the maps is in memory at once: whole images, or some query rows of one image."""

from __future__ import annotations

from typing import NamedTuple

_CACHE_BYTES = 1 << 20
"""Bytes of one buffer of maps (all heads) on a processor."""
_DEVICE_BYTES = 256 << 20
"""The same on an accelerator, where a launch costs more than memory."""


class Blocks(NamedTuple):
    """Images and query rows handled at once; either images == 1 or rows == N."""

    images: int
    rows: int


def plan(batch: int, heads: int, tokens: int, itemsize: int, device: str) -> Blocks:
    """Blocks for maps of ``batch`` x ``heads`` x ``tokens`` x ``tokens`` entries of ``itemsize`` bytes."""
    limit = _CACHE_BYTES if device == "cpu" else _DEVICE_BYTES
    row = heads * tokens * itemsize
    if row * tokens > limit:
        return Blocks(1, min(tokens, max(16, limit // row)))
    return Blocks(min(batch, limit // (row * tokens)), tokens)
