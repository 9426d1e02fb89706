"""Which mask file belongs to which image file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from deepvit.data.dataset import count
from deepvit.data.layout import list_folder


@dataclass
class Pairs:
    """The files of one part: those that belong together, in natural order, and those that stand alone."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    images_alone: list[Path] = field(default_factory=list)
    masks_alone: list[Path] = field(default_factory=list)
    twice: list[tuple[Path, Path]] = field(default_factory=list)
    """Two files of one kind and one name, as ``a.jpg`` and ``a.png``."""

    def faults(self) -> list[str]:
        """What is wrong, one line each."""
        lines = []
        if self.images_alone:
            what = count(len(self.images_alone), "image has", "images have")
            lines.append(
                f"{what} no mask of the same name (e.g. {self.images_alone[0]}); add it or take the image out"
            )
        if self.masks_alone:
            what = count(len(self.masks_alone), "mask has", "masks have")
            lines.append(
                f"{what} no image of the same name (e.g. {self.masks_alone[0]}); add it or take the mask out"
            )
        lines += [f"{one} and {other} have one name; take one of them out" for one, other in self.twice]
        return lines


def pair(
    images: Path,
    masks: Path,
    image_key: Callable[[str], str | None] = lambda stem: stem,
    mask_key: Callable[[str], str | None] = lambda stem: stem,
    *,
    only_images: Iterable[str] | None = None,
    only_masks: Iterable[str] | None = None,
) -> Pairs:
    """Pairs the files below two folders by their paths in them without the ending.

    Args:
        images, masks: the folders.
        image_key, mask_key: path without its ending → what images and masks have in common, None for a file that is neither.
        only_images, only_masks: paths in the folders; by default all image files in them.
    """
    found = Pairs()
    tables: list[dict[str, Path]] = []
    for folder, key, only in ((images, image_key, only_images), (masks, mask_key, only_masks)):
        table: dict[str, Path] = {}
        for path in list_folder(folder).paths if only is None else only:
            name = key(os.path.splitext(path)[0])
            if name is None:
                continue
            if name in table:
                found.twice.append((table[name], folder / path))
            table.setdefault(name, folder / path)
        tables.append(table)
    for name, image in tables[0].items():
        if name in tables[1]:
            found.images.append(image)
            found.masks.append(tables[1][name])
        else:
            found.images_alone.append(image)
    found.masks_alone = [mask for name, mask in tables[1].items() if name not in tables[0]]
    return found
