"""The sources of images with masks, and opening by a data string. A new one is a file and a line of ``MASK_SOURCES``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from deepvit.data.options import DataOptions
from deepvit.data.sets import ImageSet
from deepvit.data.sources.source import Sources
from deepvit.data.split import evenly_spaced
from deepvit.errors import UserError
from deepvit.masks.ade20k import ADE20K
from deepvit.masks.cityscapes import CITYSCAPES
from deepvit.masks.dataset import MaskData
from deepvit.masks.local import MASK_FOLDER, looks_like
from deepvit.masks.scan import THREADS
from deepvit.masks.scenes import DIGIT_SCENES
from deepvit.masks.sets import file_pair
from deepvit.masks.voc import VOC, known

LOOKED_AT = 4_000
"""Masks of each part that opening reads, evenly spaced; those beyond are checked when they are read."""

MASK_SOURCES: Sources[MaskData] = Sources(
    DIGIT_SCENES,
    VOC,
    CITYSCAPES,
    ADE20K,
    MASK_FOLDER,
)


def open_masks(spec: str, options: DataOptions | None = None, **given: Any) -> MaskData:
    """Opens images with masks by a data string (``deepvit list data`` shows the forms).

    Up to 4,000 masks of each part are read and checked, several at a time; every other one when it is read.

    Args:
        spec: the string.
        options: the source's own options.
        **given: the same by name (``open_masks(folder, void=11)``), instead of ``options``.

    Raises:
        UserError: one line, for what a person can mend: images without masks, masks of another size, ids beyond the
            classes, colours without a map, nothing but void, an option that the source does not take.
    """
    assert options is None or not given
    data = open_unchecked(spec, DataOptions.of(**given) if given else options)
    if data.faults:
        raise UserError(data.faults[0])
    for images in (data.train, data.val):
        _look(images)
    return data


def open_unchecked(spec: str, options: DataOptions | None = None) -> MaskData:
    """As ``open_masks``, but no mask is looked at, and what is wrong with the files stands in ``faults``."""
    return MASK_SOURCES.open(spec, options)


def has_masks(spec: str) -> bool:
    """Whether a data string looks like data with masks: known by its name or its folders, and no classes' folders."""
    own = [source for source in MASK_SOURCES if source is not MASK_FOLDER and source is not VOC]
    if any(source.takes(spec) for source in own):
        return True
    return (VOC.takes(spec) and known(spec.removeprefix(VOC.name))) or looks_like(spec)


def table() -> list[dict[str, str]]:
    """Rows for ``deepvit list data``."""
    return MASK_SOURCES.table()


def _look(images: ImageSet) -> None:
    if file_pair(images, 0) is None:
        return  # drawn scenes have nothing to mend
    chosen = evenly_spaced(len(images), LOOKED_AT)
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(images.target, range(len(images)) if chosen is None else chosen.tolist()):
            pass
