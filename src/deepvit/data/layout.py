"""How a folder or a tar says which images train, which validate, and of which class each is."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from timm.utils.misc import natural_key

from deepvit.data.images import UNLABELLED, FileImages, ImageSet, TarImages
from deepvit.errors import UserError

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "test", "testing")  # the first that is there is taken


@dataclass
class Listing:
    """Every image below one place: ``paths`` are relative, with forward slashes, in natural order."""

    place: Path
    paths: list[str]
    extents: dict[str, tuple[int, int]] | None = None  # of a tar: offset and size in bytes of each member
    empty_classes: list[str] = field(default_factory=list)

    def images(self, paths: list[str], targets: list[int]) -> ImageSet:
        """The images at ``paths`` with these labels."""
        labels = torch.tensor(targets, dtype=torch.int64)
        if self.extents is None:
            return FileImages(self.place, paths, labels)
        extents = torch.tensor([self.extents[path] for path in paths], dtype=torch.int64).reshape(-1, 2)
        return TarImages(self.place, paths, extents, labels)


def list_folder(root: Path) -> Listing:
    """Walks a folder (links followed) for files with an image's ending; hidden ones are left out."""
    extensions = image_extensions()
    paths: list[str] = []
    bare: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if prefix == "." else prefix + "/"
        found = [f for f in files if not f.startswith(".") and os.path.splitext(f)[1].lower() in extensions]
        paths += [prefix + name for name in found]
        if not found and not folders and prefix:
            bare.append(prefix.rstrip("/"))
    return Listing(root, sorted(paths, key=natural_key), empty_classes=bare)


def list_tar(archive: Path) -> Listing:
    """Indexes an uncompressed tar without unpacking it; raises ``UserError`` when it is not one."""
    extensions = image_extensions()
    extents: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(archive, mode="r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                hidden = any(part.startswith(".") for part in name.split("/"))
                if member.isfile() and not hidden and os.path.splitext(name)[1].lower() in extensions:
                    extents[name] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{archive} is not a readable uncompressed tar ({error}); make one by `tar cf`"
        ) from error
    return Listing(archive, sorted(extents, key=natural_key), extents)


def split_by_name(listing: Listing) -> tuple[dict[str, list[str]], str] | None:
    """Paths by split name where folders of that name are at the top (below at most one common folder).

    Returns ``({split name: paths}, prefix in front of the split name)``; None when there is no train folder.
    """
    prefix = ""
    while True:
        tops = {path[len(prefix) :].split("/", 1)[0] for path in listing.paths}
        # A class may be called "train" (the vehicle): then other names stand beside it, and no val.
        if tops & {*TRAIN_NAMES} and (tops & {*VAL_NAMES} or len(tops) == 1):
            break
        nested = all(path[len(prefix) :].count("/") >= 2 for path in listing.paths)
        if len(tops) != 1 or not nested:
            return None
        prefix += f"{tops.pop()}/"
    splits: dict[str, list[str]] = {}
    for path in listing.paths:
        splits.setdefault(path[len(prefix) :].split("/", 1)[0], []).append(path)
    return splits, prefix


def class_prefix(paths: list[str]) -> str:
    """The common leading folder before class names, e.g. ``data/`` in ``data/cat/1.png``; mostly none."""
    prefix = ""
    while True:
        tops = {path[len(prefix) :].split("/", 1)[0] for path in paths}
        if len(tops) != 1 or not all(path[len(prefix) :].count("/") >= 2 for path in paths):
            return prefix
        prefix += f"{tops.pop()}/"


def classes_of(listing: Listing, paths: list[str], prefix: str, what: str) -> list[str]:
    """The class name of each path: its first folder after ``prefix``; ``UserError`` where there is none."""
    names = [path[len(prefix) :].split("/") for path in paths]
    loose = [path for path, parts in zip(paths, names, strict=True) if len(parts) < 2]
    if loose:
        raise UserError(
            f"{what} has {len(loose)} image(s) outside any class folder (e.g. {loose[0]}); "
            "put each image into a folder named after its class"
        )
    return [parts[0] for parts in names]


def class_index(names: Iterable[str], class_map: Mapping[str, int] | None) -> dict[str, int]:
    """Class name to label: natural order of the names, or ``class_map`` (``UserError``: a name it lacks)."""
    ordered = sorted(set(names), key=natural_key)
    if class_map is None:
        return {name: label for label, name in enumerate(ordered)}
    missing = [name for name in ordered if name not in class_map]
    if missing:
        raise UserError(f"class {missing[0]!r} of the data is not in the class map; add it there")
    return dict(class_map)


def unlabelled(listing: Listing) -> ImageSet:
    """All images of a listing, without labels."""
    return listing.images(listing.paths, [UNLABELLED] * len(listing.paths))


def image_extensions() -> frozenset[str]:
    """Every file ending that PIL can open as an image, with its dot, in lower case."""
    opened = {ext for ext, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(opened - {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf"})
