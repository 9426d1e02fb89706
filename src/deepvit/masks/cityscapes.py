"""Cityscapes' folders: ``leftImg8bit/`` and ``gtFine/``, the 19 classes that are evaluated."""

from __future__ import annotations

from pathlib import Path

from deepvit.data.options import NoOptions
from deepvit.data.sources.source import Source
from deepvit.errors import UserError
from deepvit.masks.dataset import MaskData
from deepvit.masks.ids import VOID, TableIds
from deepvit.masks.pairs import Pairs, pair
from deepvit.masks.sets import PairedFiles

IMAGES, MASKS = "leftImg8bit", "gtFine"
IMAGE_END, MASK_END = "_leftImg8bit", "_gtFine_labelIds"
# name, id in the label-id files, colour: https://github.com/mcordts/cityscapesScripts, helpers/labels.py
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
LABELS = range(34)
"""Ids of the label-id files; those of no class above count for nothing."""


def is_cityscapes(spec: str) -> bool:
    """Whether the folder has both parts of the data set."""
    root = Path(spec).expanduser()
    return (root / IMAGES).is_dir() and (root / MASKS).is_dir()


def open_cityscapes(spec: str, options: NoOptions) -> MaskData:
    """Training and validation cities; masks are the files ``*_gtFine_labelIds.png``."""
    root = Path(spec).expanduser()
    parts: list[Pairs] = []
    for name in ("train", "val"):
        places = root / IMAGES / name, root / MASKS / name
        for place in places:
            if not place.is_dir():
                raise UserError(
                    f"{place} does not exist; unpack both {IMAGES} and {MASKS} of Cityscapes into {spec}"
                )
        found = pair(*places, lambda stem: _before(stem, IMAGE_END), lambda stem: _before(stem, MASK_END))
        if not found.images:
            raise UserError(
                f"{places[0]} holds no image ({IMAGE_END}.png) that has a mask ({MASK_END}.png) in {places[1]}"
            )
        parts.append(found)
    table = dict.fromkeys((*LABELS, VOID), VOID) | {
        number: label for label, (_, number, _) in enumerate(CLASSES)
    }
    ids = TableIds(len(CLASSES), table, f"these are not the ids of {MASK_END}.png files")
    train, val = (PairedFiles(found.images, found.masks, ids) for found in parts)
    return MaskData(
        spec,
        train,
        val,
        [name for name, _, _ in CLASSES],
        [colour for _, _, colour in CLASSES],
        "Cityscapes' own parts train and val",
        faults=[f"{spec}: {fault}" for found in parts for fault in found.faults()],
    )


def _before(stem: str, end: str) -> str | None:
    return stem.removesuffix(end) if stem.endswith(end) else None


CITYSCAPES = Source(
    name="cityscapes",
    forms=(
        (
            "FOLDER",
            "Cityscapes: leftImg8bit/ and gtFine/ with label-id files; 19 classes, everything else void",
        ),
    ),
    needs="local files",
    options=NoOptions,
    open=open_cityscapes,
    claims=is_cityscapes,
)
