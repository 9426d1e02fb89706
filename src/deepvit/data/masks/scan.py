"""Counting what masks hold: pixels of each class, and the weights of classes that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from deepvit.data.masks.dataset import MaskData
from deepvit.data.masks.ids import UNKNOWN, Array
from deepvit.data.masks.sets import file_pair
from deepvit.data.sets import ImageSet
from deepvit.data.split import evenly_spaced
from deepvit.errors import UserError

THREADS = 4
COUNTED = 2000
"""Masks that class weights are counted over, evenly spaced, where a set has more."""

Kind = Literal["inverse", "median"]


@dataclass(frozen=True)
class Counted:
    """What one mask holds.

    Attributes:
        name: the mask's.
        pixels: int64 [classes].
        ignored: pixels that count for nothing.
        strangers: id or colour that means no class → its pixels.
        error: why it cannot be used at all: unreadable, in colour, or not of its image's size; empty otherwise.
    """

    name: str
    pixels: Array
    ignored: int = 0
    strangers: dict[str, int] = field(default_factory=dict)
    error: str = ""

    @property
    def total(self) -> int:
        """All its pixels."""
        return int(self.pixels.sum()) + self.ignored + sum(self.strangers.values())


def count_mask(images: ImageSet, index: int, classes: int, ignore_index: int) -> Counted:
    """Counts one mask of a set; what is wrong with it is told, not raised."""
    pair = file_pair(images, index)
    name = str(pair[0].masks[pair[1]]) if pair else images.where(index)
    strangers: dict[str, int] = {}
    try:
        if pair is None:
            found = np.asarray(images.target(index)).astype(np.int64)
        else:
            files, number = pair
            mask = files.pixels(number)
            found = files.ids.known(mask, name)
            if bool((found == UNKNOWN).any()):
                strangers = files.ids.strangers(mask, name, found == UNKNOWN)
    except UserError as error:
        return Counted(name, np.zeros(classes, dtype=np.int64), error=str(error))
    counting = found[(found != ignore_index) & (found != UNKNOWN)]
    pixels = np.bincount(counting, minlength=classes).astype(np.int64)
    return Counted(name, pixels, int((found == ignore_index).sum()), strangers)


def count_masks(
    data: MaskData, part: Literal["train", "val"], numbers: Iterable[int] | None = None
) -> Iterable[Counted]:
    """Counts the masks of a part in order, some at a time."""
    images = data.train if part == "train" else data.val
    chosen = range(len(images)) if numbers is None else numbers

    def one(index: int) -> Counted:
        return count_mask(images, index, data.num_classes, data.ignore_index)

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(one, chosen)


def class_weights(
    data: MaskData,
    kind: Kind,
    *,
    limit: int | None = COUNTED,
    progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """A weight a class for the loss, float32 [classes], by the pixels of the training masks; their mean is 1.

    "inverse" is 1 / (share of all pixels that count). "median" is median frequency balancing (Eigen and Fergus,
    ICCV 2015, section 6.3.2): the median of the frequencies over the class's own, a frequency being the class's pixels over
    all pixels that count of the images in which it occurs. A class that occurs nowhere has the largest weight of the others.

    Args:
        data: the data.
        kind: "inverse" or "median".
        limit: masks at most, evenly spaced; None: all.
        progress: called with the number of masks read so far.

    Raises:
        UserError: another kind, or a mask that cannot be used.
    """
    if kind not in ("inverse", "median"):
        raise UserError(f"no class weights are called {kind!r}; there are inverse and median")
    chosen = evenly_spaced(len(data.train), limit)
    pixels = np.zeros(data.num_classes)
    around = np.zeros(data.num_classes)
    for done, mask in enumerate(count_masks(data, "train", None if chosen is None else chosen.tolist()), 1):
        if mask.error:
            raise UserError(mask.error)
        if mask.strangers:
            raise UserError(f"mask {mask.name} holds {next(iter(mask.strangers))}, which is no class")
        pixels += mask.pixels
        around += (mask.pixels > 0) * mask.pixels.sum()
        if progress is not None:
            progress(done)
    there = pixels > 0
    if not there.any():
        raise UserError(f"no training mask of {data.spec} holds a class")
    frequency = pixels[there] / (pixels.sum() if kind == "inverse" else around[there])
    weights = np.empty(data.num_classes)
    weights[there] = (1.0 if kind == "inverse" else np.median(frequency)) / frequency
    weights[~there] = weights[there].max()
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)
