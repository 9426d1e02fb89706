"""Sets of images with masks: pairs of files, read and checked one by one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from deepvit.data.images import decode, reading, upright
from deepvit.data.masks.ids import Ids
from deepvit.data.sets import UNLABELLED, ImageSet, Subset
from deepvit.errors import UserError

SIDEWAYS = range(5, 9)  # EXIF orientations that swap height and width


class MaskSet(ImageSet):
    """Images whose target is a mask: a tensor [H, W] of the image's size, classes or ``ignore_index``."""

    ignore_index: int

    @abstractmethod
    def mask(self, index: int) -> torch.Tensor:
        """The mask, uint8 (int32 above 255 classes) [H, W]; ``UserError`` that names it when it cannot be used."""

    def target(self, index: int) -> torch.Tensor:
        """The mask."""
        return self.mask(index)

    def nothing(self, index: int) -> torch.Tensor:
        """A mask of the same size in which nothing counts."""
        return torch.full_like(self.mask(index), self.ignore_index)


class PairedFiles(MaskSet):
    """Image files, each with a mask file.

    Args:
        images: paths.
        masks: paths, one an image.
        ids: what the masks' pixels mean.
    """

    def __init__(self, images: Sequence[Path], masks: Sequence[Path], ids: Ids) -> None:
        assert len(images) == len(masks)
        self.images, self.masks, self.ids = list(images), list(masks), ids
        self.targets = torch.full((len(images),), UNLABELLED)
        self.ignore_index = ids.ignore_index

    def open(self, index: int) -> Image.Image:
        """Reads the file."""
        return decode(self.images[index])

    def where(self, index: int) -> str:
        """The image's path."""
        return str(self.images[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width, upright, by the file's head alone."""
        (width, height), turned = self._head(index)
        return (width, height) if turned in SIDEWAYS else (height, width)

    def mask(self, index: int) -> torch.Tensor:
        """The mask as classes.

        A photograph that its EXIF orientation turns turns a mask with it that has the size of the photograph as stored.

        Raises:
            UserError: it cannot be read, its size is not the image's, a pixel means no class, or all are void.
        """
        classes = self.classes(index)
        self.check_filled(index, classes)
        return torch.from_numpy(classes)

    def classes(self, index: int) -> np.ndarray[Any, Any]:
        """As ``mask``, whether or not all are void."""
        return self.ids.classes(self.pixels(index), str(self.masks[index]))

    def check_filled(self, index: int, classes: np.ndarray[Any, Any]) -> None:
        """Raises ``UserError`` for a mask in which nothing counts."""
        if bool((classes == self.ignore_index).all()):
            raise UserError(
                f"mask {self.masks[index]} holds nothing but void, from which nothing is learnt; mend it, or take it and "
                "its image out"
            )

    def pixels(self, index: int) -> Image.Image:
        """The mask as its file has it, turned as its image is; ``UserError`` where their sizes differ."""
        name = str(self.masks[index])
        with reading(name):
            mask = upright(decode(self.masks[index]))
        (width, height), turned = self._head(index)
        shown = (height, width) if turned in SIDEWAYS else (width, height)
        if mask.size == shown:
            return mask
        if turned in SIDEWAYS and mask.size == (width, height):
            mask.getexif()[ExifTags.Base.Orientation] = turned
            return upright(mask)
        raise UserError(
            f"mask {name} has {mask.size[0]}×{mask.size[1]} pixels and its image {self.images[index]} "
            f"{shown[0]}×{shown[1]}; they must be of one size"
        )

    def _head(self, index: int) -> tuple[tuple[int, int], int]:
        """Width and height as stored, and the EXIF orientation."""
        with reading(self.where(index)), Image.open(self.images[index]) as image:
            try:
                turned = int(image.getexif().get(ExifTags.Base.Orientation) or 1)
            except Exception:  # as in ``upright``: metadata that cannot be parsed
                turned = 1
            return image.size, turned


def file_pair(images: ImageSet, index: int) -> tuple[PairedFiles, int] | None:
    """The files behind an image of a set and its number among them; None where there are none."""
    if isinstance(images, Subset):
        return file_pair(images.base, int(images.indices[index]))
    return (images, index) if isinstance(images, PairedFiles) else None
