"""Small sets decoded once into one uint8 tensor in memory, and the batches that come from there."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from deepvit.data.augmentation import SMALL_SIDE
from deepvit.data.batched.augment import BatchAugment, Normalize, upscale
from deepvit.data.batched.keyed import Batch, Key, Skipped
from deepvit.data.batched.seeds import seed_of
from deepvit.data.inputs import InputSpec, Size
from deepvit.data.sets import ImageSet
from deepvit.data.split import evenly_spaced
from deepvit.data.transforms import geometry
from deepvit.errors import UserError

BUDGET = 2 * 1024**3
"""Bytes that all decoded images of a data set may take in memory."""
PROBED = 64

logger = logging.getLogger(__name__)


@dataclass
class Stored:
    """Decoded images: uint8 [n, 3, h, w], labels int64 [n], and the names of those that could not be read."""

    images: torch.Tensor
    labels: torch.Tensor
    skipped: list[str]


class StoredTrain:
    """Training batches out of memory."""

    def __init__(self, stored: Stored, augment: BatchAugment, seed: int, rank: int) -> None:
        self.stored, self.augment, self.seed, self.rank = stored, augment, seed, rank

    def batch(self, key: Key) -> Batch:
        """Augmented images; draws come from a generator of their own, seeded by the key."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, key.epoch, self.rank, key.batch))
        images = self.augment(self.stored.images[key.numbers], generator)
        return Batch(images, self.stored.labels[key.numbers], [])


class StoredEval:
    """Evaluation batches out of memory: normalised, and scaled up when they are stored below the network's size."""

    def __init__(self, stored: Stored, spec: InputSpec, interpolation: str) -> None:
        self.stored, self.spec, self.interpolation = stored, spec, interpolation
        self.normalize = Normalize(spec.mean, spec.std)

    def batch(self, key: Key) -> Batch:
        """Images and labels in order."""
        images = self.normalize(self.stored.images[key.numbers])
        if images.shape[-2:] != self.spec.hw:
            images = upscale(images, self.spec.hw, self.interpolation, self.spec.crop)
        return Batch(images, self.stored.labels[key.numbers], [])


def storage_size(images: ImageSet, count: int, size: Size, mode: str) -> Size | None:
    """The size at which to keep images in memory, or None to decode them every epoch.

    ``mode`` "auto" keeps sets whose images (of 64 probed) have sides up to 96 and that fit the budget;
    "ram" keeps any set, reduced to the network's size; "off" keeps none. ``count`` is how many images there
    are in all parts. Raises ``UserError`` when "ram" does not fit.
    """
    if mode == "off":
        return None
    assert mode in ("auto", "ram")
    probe = evenly_spaced(len(images), PROBED)
    numbers = range(len(images)) if probe is None else probe.tolist()
    sides = {side for i in numbers if (side := _side(images, i)) is not None}
    if not sides:
        return None  # none can be read: decoding will say so, or skip them
    native = next(iter(sides))
    alike = len(sides) == 1 and native[0] == native[1]
    small = max(max(side) for side in sides) <= SMALL_SIDE
    if mode == "auto" and not small:
        return None
    # A larger input is scaled up batch by batch after augmentation: 49 times less memory at 32 -> 224.
    stored = native if alike and small and max(size) > SMALL_SIDE else size
    needed = count * 3 * stored[0] * stored[1]
    if needed > BUDGET:
        if mode == "ram":
            raise UserError(
                f"cache='ram' needs {needed / 1024**3:.1f} GiB here, more than 2; use auto or off"
            )
        return None
    return stored


def decode(
    images: ImageSet,
    size: Size,
    interpolation: str,
    crop_pct: float,
    *,
    skipped: Skipped,
    what: str = "images",
    progress: bool = False,
) -> Stored:
    """All images at ``size``. Unreadable ones are left out, or raise ``UserError`` where ``skipped`` does not allow that.

    A line of progress goes to standard error when it is a terminal.
    """
    start = time.perf_counter()
    fit = geometry(size, interpolation, crop_pct)
    store = np.empty((len(images), 3, *size), dtype=np.uint8)
    good: list[int] = []
    shown = progress and sys.stderr.isatty()
    console = Console(stderr=True)
    for i in track(
        range(len(images)), f"decoding {what}", console=console, transient=True, disable=not shown
    ):
        try:
            image = images.image(i)
        except UserError as error:
            skipped.add(str(error))
            continue
        if image.size != (size[1], size[0]) or crop_pct != 1.0:
            image = fit(image)
        store[len(good)] = np.asarray(image).transpose(2, 0, 1)
        good.append(i)
    logger.info("decoded %d %s in %.1f s", len(good), what, time.perf_counter() - start)
    return Stored(torch.from_numpy(store[: len(good)]), images.targets[good], skipped.complaints)


def _side(images: ImageSet, number: int) -> Size | None:
    try:
        width, height = images.image(number).size
    except UserError:
        return None
    return height, width
