"""Pascal VOC by torchvision's reader: ``torch/voc2012``."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from deepvit.data.masks.dataset import MaskData
from deepvit.data.masks.ids import VOID, TableIds
from deepvit.data.masks.palette import palette
from deepvit.data.masks.sets import PairedFiles
from deepvit.data.options import DownloadOption, RootOption
from deepvit.data.sources.foreign import one_line
from deepvit.data.sources.source import Source
from deepvit.errors import UserError

CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
YEARS = range(2007, 2013)


@dataclass
class VOCOptions(DownloadOption, RootOption):
    """Options of torchvision's data sets with masks."""


def known(name: str) -> bool:
    """Whether ``torch/name`` is one of these."""
    found = re.fullmatch(r"voc(20\d\d)", name.casefold())
    return found is not None and int(found[1]) in YEARS


def open_voc(name: str, options: VOCOptions) -> MaskData:
    """Pascal VOC of a year, 21 classes, borders (255) void: its parts train and val.

    Raises:
        UserError: another name, or no files in ``root`` (default: ``datasets`` in torch hub's folder); they are fetched only
            where ``download`` says so.
    """
    from torchvision.datasets import VOCSegmentation

    year = name[-4:]
    if not known(name):
        raise UserError(
            f"torch/{name} has no masks that are known here; there are torch/voc2007 to torch/voc2012"
        )
    place = (
        Path(options.root).expanduser()
        if options.root is not None
        else Path(torch.hub.get_dir()) / "datasets"
    )
    download = bool(options.download)
    way_out = (
        "check the network"
        if download
        else f"put VOCdevkit/VOC{year} into {place} (--data.root), or let it be fetched (--data.download true)"
    )
    ids = TableIds(len(CLASSES), {**{i: i for i in range(len(CLASSES))}, VOID: VOID}, "mend it")
    parts = []
    for split in ("train", "val"):
        with one_line(f"torch/{name}", way_out):
            if download:
                # asked for, and still not over what is there: torchvision would unpack it again
                with contextlib.suppress(RuntimeError):
                    parts.append(VOCSegmentation(str(place), year, split))
                    continue
                place.mkdir(parents=True, exist_ok=True)
            parts.append(VOCSegmentation(str(place), year, split, download=download))
    sets = [PairedFiles([Path(p) for p in part.images], [Path(p) for p in part.masks], ids) for part in parts]
    faults = [f"torch/{name}: {fault}" for images in sets for fault in missing(images)]
    return MaskData(
        f"torch/{name}",
        sets[0],
        sets[1],
        list(CLASSES),
        palette(len(CLASSES)),
        "the data set's own parts train and val",
        faults=faults,
    )


def missing(images: PairedFiles) -> list[str]:
    """Files of torchvision's list that are not there."""
    lost = [path for path in (*images.images, *images.masks) if not path.is_file()]
    return [f"{len(lost)} of its files are not there (e.g. {lost[0]}); unpack it again"] if lost else []


VOC = Source(
    name="torch/",
    forms=(
        ("torch/voc2012", "Pascal VOC by torchvision's reader, 21 classes, borders void; also 2007 to 2011"),
    ),
    needs="local files, or a network once (--data.download true)",
    options=VOCOptions,
    open=open_voc,
)
