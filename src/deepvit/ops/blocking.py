"""How much of the maps is in memory at once: whole images, or some query rows of one image.

One buffer holds the maps of all heads of a block. Small buffers stay in the processor's cache; large ones mean
fewer calls and larger matrix products. Measured on two cores of an AMD EPYC (1 MiB of second-level cache each),
H = 12, D = 32, float32, each as time over scaled_dot_product_attention's, forward / forward and backward:

    17 tokens   1 image 2.1 / 2.7    4 images 1.4 / 1.8   16 images 1.2 / 1.8   64 images 1.1 / 1.9
    65 tokens   1 image 1.4 / 1.6    4 images 1.3 / 1.6    8 images 1.3 / 1.7   32 images 1.5 / 2.4
    197 tokens  197 rows 1.5 / 1.6   99 rows 1.4 / 1.6    66 rows 1.4 / 1.6
    577 tokens  577 rows 1.8 / 2.9  193 rows 1.6 / 1.7    96 rows 1.4 / 1.5     48 rows 1.4 / 1.5
    1025 tokens 342 rows 1.8 / 2.3  129 rows 1.5 / 1.8    65 rows 1.6 / 1.5     33 rows 1.5 / 1.6

Every size is best near 1 MiB a buffer with whole images, and near 2 MiB with rows of one image.
"""

from __future__ import annotations

from typing import NamedTuple

_IMAGE_BYTES = 1 << 20
"""Bytes of one buffer of maps (all heads) on a processor, where it holds several whole images."""
_ROW_BYTES = 2 << 20
"""The same where it holds one image or a part of one."""
_DEVICE_BYTES = 256 << 20
"""The same on an accelerator, where a launch costs more than memory."""


class Blocks(NamedTuple):
    """Images and query rows handled at once; either images == 1 or rows == N."""

    images: int
    rows: int


def plan(batch: int, heads: int, tokens: int, itemsize: int, device: str) -> Blocks:
    """Blocks for maps of ``batch`` x ``heads`` x ``tokens`` x ``tokens`` entries of ``itemsize`` bytes."""
    one_image = heads * tokens * tokens * itemsize
    rows = _ROW_BYTES if device == "cpu" else _DEVICE_BYTES
    if one_image > rows:
        count = -(-one_image // rows)  # of equal blocks
        return Blocks(1, -(-tokens // count))
    images = _IMAGE_BYTES if device == "cpu" else _DEVICE_BYTES
    return Blocks(max(1, min(batch, images // one_image)), tokens)
