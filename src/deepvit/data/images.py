"""Sets of labelled images with random access: class folders, tars, arrays, and timm's map-style readers."""

from __future__ import annotations

import io
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepvit.errors import UserError

UNLABELLED = -1


class ImageSet(ABC):
    """Images by number, with their labels: ``targets`` int64 [n], ``UNLABELLED`` (-1) where there is none."""

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
        """The decoded image in RGB; ``UserError`` that names it when it cannot be read.

        Grey becomes three equal channels; 16-bit grey is scaled to 8 bits (PIL alone would clip it).
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", UserWarning
                )  # e.g. palette transparency, which RGB drops anyway
                return _as_rgb(self.open(index))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"image {self.where(index)} cannot be read ({reason}); mend or remove it"
            ) from error

    def fingerprint(self) -> list[Any] | None:
        """What identifies the contents (JSON-able), for a cache on disk; None when there is no cheap way."""
        return None

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

    def where(self, index: int) -> str:
        """As the base set names it."""
        return self.base.where(int(self.indices[index]))

    def fingerprint(self) -> list[Any] | None:
        """The base set's, and which images were chosen."""
        base = self.base.fingerprint()
        return None if base is None else [base, self.indices.tolist()]


class FileImages(ImageSet):
    """Image files under one folder; ``paths`` are relative to ``root`` with forward slashes."""

    def __init__(self, root: Path, paths: Sequence[str], targets: torch.Tensor) -> None:
        self.root, self.paths, self.targets = root, list(paths), targets

    def open(self, index: int) -> Image.Image:
        """Reads the file."""
        with open(self.root / self.paths[index], "rb") as file:
            image = Image.open(file)
            image.load()
        return image

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self.root / self.paths[index])

    def fingerprint(self) -> list[Any] | None:
        """Name, size and time of change of every file."""
        stats = [os.stat(self.root / path) for path in self.paths]
        return [[p, s.st_size, s.st_mtime_ns] for p, s in zip(self.paths, stats, strict=True)]


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
        image = Image.open(io.BytesIO(os.pread(self._file.fileno(), size, offset)))
        image.load()
        return image

    def where(self, index: int) -> str:
        """Archive and member."""
        return f"{self.names[index]} in {self.archive}"

    def fingerprint(self) -> list[Any] | None:
        """Path, size and time of change of the archive, and the members."""
        stat = os.stat(self.archive)
        return [str(self.archive.resolve()), stat.st_size, stat.st_mtime_ns, self.names]


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
        return image if isinstance(image, Image.Image) else Image.open(image)

    def where(self, index: int) -> str:
        """Its number."""
        return f"{index} of {self.name}"


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey ("I;16") and what older PNG readers made of it ("I")
        wide = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.clip(np.round(wide / 257.0), 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
