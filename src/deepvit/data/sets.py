"""Sets of images with random access: files of a folder, members of a tar, arrays, and map-style data sets."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepvit.data.images import decode, reading, to_rgb
from deepvit.errors import UserError

UNLABELLED = -1


class ImageSet(ABC):
    """Images by number, each with a target: its label, or what ``target`` of a subclass returns (a mask).

    ``targets`` int64 [n] holds the labels, ``UNLABELLED`` (-1) where an image has none, and so everywhere in a set whose
    targets are of another kind.
    """

    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def open(self, index: int) -> Image.Image:
        """The image as its source has it (any PIL mode); may raise whatever its source raises."""

    @abstractmethod
    def where(self, index: int) -> str:
        """How to name the image to a person: its path, or its number in its source."""

    def image(self, index: int) -> Image.Image:
        """The image in upright 8-bit RGB (see ``to_rgb``); ``UserError`` that names it when it cannot be read."""
        with reading(self.where(index)):
            return to_rgb(self.open(index))

    def target(self, index: int) -> Any:
        """What belongs to the image: its label as an int, unless a subclass reads something else.

        May raise ``UserError`` when it cannot be read; the image then counts as unreadable.
        """
        return int(self.targets[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image in pixels, upright; a subclass may know them without decoding it."""
        width, height = self.image(index).size
        return height, width

    def nothing(self, index: int) -> Any:
        """A target like that of the image that counts for nothing: no label, unless a subclass has another kind."""
        return UNLABELLED

    def of_epoch(self, seed: int, epoch: int) -> ImageSet:
        """The set as training sees it in one epoch: itself, unless its images are made anew each time (drawn scenes).

        What is made anew is a function of (seed, epoch, index), so that a resumed run sees the same.
        """
        return self

    def subset(self, indices: Sequence[int] | torch.Tensor) -> ImageSet:
        """The images with these numbers, in this order."""
        return Subset(self, torch.as_tensor(indices, dtype=torch.int64))


class Subset(ImageSet):
    """A choice of images out of another set."""

    def __init__(self, base: ImageSet, indices: torch.Tensor) -> None:
        self.base, self.indices = base, indices
        self.targets = base.targets[indices]

    def open(self, index: int) -> Image.Image:
        """As the base set has it."""
        return self.base.open(int(self.indices[index]))

    def image(self, index: int) -> Image.Image:
        """As the base set has it."""
        return self.base.image(int(self.indices[index]))

    def target(self, index: int) -> Any:
        """As the base set has it."""
        return self.base.target(int(self.indices[index]))

    def where(self, index: int) -> str:
        """As the base set names it."""
        return self.base.where(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """As the base set knows it."""
        return self.base.size(int(self.indices[index]))

    def nothing(self, index: int) -> Any:
        """As the base set has it."""
        return self.base.nothing(int(self.indices[index]))

    def of_epoch(self, seed: int, epoch: int) -> ImageSet:
        """The same choice out of the base set's epoch."""
        base = self.base.of_epoch(seed, epoch)
        return self if base is self.base else Subset(base, self.indices)


class Repeated(ImageSet):
    """A set followed by its first images once more, with targets that count for nothing.

    Processes that must have equally many batches are given those, where images cannot be shared out evenly.
    """

    def __init__(self, base: ImageSet, times: int) -> None:
        self.base = base
        self.targets = torch.cat([base.targets, torch.full((times,), UNLABELLED)])

    def open(self, index: int) -> Image.Image:
        """As the base set has it."""
        return self.base.open(index % len(self.base))

    def image(self, index: int) -> Image.Image:
        """As the base set has it."""
        return self.base.image(index % len(self.base))

    def target(self, index: int) -> Any:
        """The base set's target, or nothing."""
        past = index - len(self.base)
        return self.base.target(index) if past < 0 else self.base.nothing(past)

    def where(self, index: int) -> str:
        """As the base set names it."""
        return self.base.where(index % len(self.base))


class FileImages(ImageSet):
    """Image files under one folder; ``paths`` are relative to ``root`` with forward slashes."""

    def __init__(self, root: Path, paths: Sequence[str], targets: torch.Tensor) -> None:
        self.root, self.paths, self.targets = root, list(paths), targets

    def open(self, index: int) -> Image.Image:
        """Reads the file."""
        return decode(self.root / self.paths[index])

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.paths[index])


class TarImages(ImageSet):
    """Images in an uncompressed tar, read in place: ``extents`` int64 [n, 2] holds offset and size in bytes.

    Reads by position, so that worker processes and threads may share one open file.
    """

    def __init__(
        self, archive: Path, names: Sequence[str], extents: torch.Tensor, targets: torch.Tensor
    ) -> None:
        self.archive, self.names, self.extents, self.targets = archive, list(names), extents, targets
        self._file: io.FileIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def open(self, index: int) -> Image.Image:
        """Reads the member."""
        if self._file is None:
            self._file = io.FileIO(self.archive)
        offset, size = self.extents[index].tolist()
        return decode(os.pread(self._file.fileno(), size, offset))

    def where(self, index: int) -> str:
        """Archive and member."""
        return f"{self.names[index]} in {self.archive}"


class ArrayImages(ImageSet):
    """Images that are in memory: ``array`` uint8 [n, h, w] (grey) or [n, h, w, 3]."""

    def __init__(self, array: np.ndarray[Any, Any], targets: torch.Tensor, name: str) -> None:
        assert array.dtype == np.uint8
        assert array.ndim in (3, 4)
        self.array, self.targets, self.name = array, targets, name

    def open(self, index: int) -> Image.Image:
        """A PIL view of the array."""
        return Image.fromarray(self.array[index])

    def where(self, index: int) -> str:
        """Its number."""
        return f"{index} of {self.name}"


class DatasetImages(ImageSet):
    """A map-style data set of (PIL image, label), as torchvision's, or a timm reader of (file, label)."""

    def __init__(self, dataset: Any, targets: torch.Tensor, name: str) -> None:
        self.dataset, self.targets, self.name = dataset, targets, name

    def open(self, index: int) -> Image.Image:
        """The sample's image."""
        image = self.dataset[index][0]
        return image if isinstance(image, Image.Image) else decode(image)

    def where(self, index: int) -> str:
        """Its number."""
        return f"{index} of {self.name}"


def size_of(images: ImageSet, index: int) -> tuple[int, int] | None:
    """Height and width of an image; None for one that cannot be read, which whoever reads it will say."""
    try:
        return images.size(index)
    except UserError:
        return None
