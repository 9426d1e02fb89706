"""Small sets decoded once into one uint8 tensor in memory, and on disk only when a folder for it is given."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from deepvit.data.config import SMALL_SIDE
from deepvit.data.images import ImageSet
from deepvit.data.split import evenly_spaced
from deepvit.data.transforms import geometry
from deepvit.errors import UserError
from deepvit.files import atomic_path

Size = tuple[int, int]
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
    on_error: str = "raise",
    what: str = "images",
    progress: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> Stored:
    """All images at ``size``. Unreadable ones raise ``UserError`` or, with ``on_error="skip"``, are left out.

    A line of progress goes to standard error when it is a terminal. With ``folder`` the result is kept there
    in a file named after the contents, the size and the resize, and read back next time.
    """
    kept = None if folder is None else _file(images, size, interpolation, crop_pct, Path(folder))
    if kept is not None and kept.is_file() and (stored := _read(kept, images)) is not None:
        return stored
    start = time.perf_counter()
    fit = geometry(size, interpolation, crop_pct)
    store = np.empty((len(images), 3, *size), dtype=np.uint8)
    good: list[int] = []
    skipped: list[str] = []
    shown = progress and sys.stderr.isatty()
    console = Console(stderr=True)
    for i in track(
        range(len(images)), f"decoding {what}", console=console, transient=True, disable=not shown
    ):
        try:
            image = images.image(i)
        except UserError as error:
            if on_error == "raise":
                raise
            skipped.append(str(error))
            continue
        if image.size != (size[1], size[0]) or crop_pct != 1.0:
            image = fit(image)
        store[len(good)] = np.asarray(image).transpose(2, 0, 1)
        good.append(i)
    result = Stored(torch.from_numpy(store[: len(good)]), images.targets[good], skipped)
    logger.info("decoded %d %s in %.1f s", len(good), what, time.perf_counter() - start)
    if kept is not None and not skipped:
        with atomic_path(kept) as temporary:
            save_file({"images": result.images, "labels": result.labels}, temporary)
    return result


def _side(images: ImageSet, number: int) -> Size | None:
    try:
        width, height = images.image(number).size
    except UserError:
        return None
    return height, width


def _file(images: ImageSet, size: Size, interpolation: str, crop_pct: float, folder: Path) -> Path | None:
    contents = images.fingerprint()
    if contents is None:
        return None
    key = json.dumps([contents, images.targets.tolist(), size, interpolation, crop_pct])
    return folder / f"images-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"


def _read(path: Path, images: ImageSet) -> Stored | None:
    try:
        tensors = load_file(path)
        stored = Stored(tensors["images"], tensors["labels"], [])
    except (SafetensorError, OSError, KeyError):
        logger.warning("the image cache %s cannot be read; decoding again", path)
        return None
    return stored if len(stored.labels) == len(images) else None
