"""How a folder or a tar says which images train, which validate, and of which class each is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from timm.utils.misc import natural_key

from deepvit.data.archives import extents_of
from deepvit.data.sets import UNLABELLED, FileImages, ImageSet, TarImages
from deepvit.errors import UserError

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "test", "testing")  # the first that is there is taken


@dataclass
class Listing:
    """Every image below one place: ``paths`` are relative, with forward slashes, in natural order."""

    place: Path
    paths: list[str]
    extents: dict[str, tuple[int, int]] | None = None  # of a tar: offset and size in bytes of each member
    empty: list[str] = field(default_factory=list)
    """Folders without an image below them, the topmost of each branch."""

    def images(self, paths: list[str], targets: list[int]) -> ImageSet:
        """The images at ``paths`` with these labels."""
        labels = torch.tensor(targets, dtype=torch.int64)
        if self.extents is None:
            return FileImages(self.place, paths, labels)
        extents = torch.tensor([self.extents[path] for path in paths], dtype=torch.int64).reshape(-1, 2)
        return TarImages(self.place, paths, extents, labels)


def list_folder(root: Path) -> Listing:
    """Walks a folder (links followed) for files with an image's ending; hidden ones are left out.

    Raises ``UserError`` for a folder that may not be read, and for links that lead in a circle.
    """
    extensions = image_extensions()
    paths: list[str] = []
    folders_seen: list[str] = []
    above: dict[str, tuple[tuple[int, int], ...]] = {}

    def refuse(error: OSError) -> None:
        raise UserError(f"folder {error.filename} cannot be read ({error.strerror}); mend its permissions")

    for folder, folders, files in os.walk(root, followlinks=True, onerror=refuse):
        stat = os.stat(folder)
        chain = above.get(os.path.dirname(folder), ())
        if (stat.st_dev, stat.st_ino) in chain:
            raise UserError(f"{folder} is a link to a folder above it; take the link out")
        above[folder] = (*chain, (stat.st_dev, stat.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if prefix == "." else prefix + "/"
        paths += [
            prefix + name
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions
        ]
        if prefix:
            folders_seen.append(prefix.rstrip("/"))
    full = {
        "/".join(parts[:n]) for parts in (path.split("/") for path in paths) for n in range(1, len(parts))
    }
    bare = [name for name in folders_seen if name not in full]
    top = [name for name in bare if os.path.dirname(name) not in bare]
    return Listing(root, sorted(paths, key=natural_key), empty=sorted(top, key=natural_key))


def list_tar(archive: Path) -> Listing:
    """Indexes an uncompressed tar without unpacking it; raises ``UserError`` when it is not one, or not whole."""
    extents = extents_of(archive, image_extensions())
    return Listing(archive, sorted(extents, key=natural_key), extents)


@dataclass
class Parts:
    """A listing told apart by folders named train, val, ...: each part's name as it stands there, and its images."""

    prefix: str
    train: str
    val: str | None
    paths: dict[str, list[str]]
    unused: list[str]


def split_by_name(listing: Listing, layout: str | None = None) -> Parts | None:
    """The parts of a listing whose top folders are named so (below at most one common folder, in any case).

    Names near to train, val, test are questioned rather than taken for classes: ``train/`` beside a misspelt
    ``vall/`` would train on two classes of those names. So are folders of any names that all hold the same classes.
    ``layout`` "classes" takes every name for a class's,
    "parts" demands parts. Returns None when the folders are classes; raises ``UserError`` for a doubtful name,
    an empty part, and parts that were demanded and are not there.
    """
    if layout == "classes":
        return None
    prefix = ""
    while True:
        tops, loose = set(), 0
        for path in listing.paths:
            top, slash, _ = path[len(prefix) :].partition("/")
            tops |= {top} if slash else set()
            loose += not slash
        train, val = _first(tops, TRAIN_NAMES), _first(tops, VAL_NAMES)
        # A class may be called "train" (the vehicle): then other names stand beside it, and no val.
        if train and (val or (len(tops) == 1 and not loose)):
            break
        _question(listing, prefix, tops)
        if len(tops) != 1 or not all(path[len(prefix) :].count("/") >= 2 for path in listing.paths):
            if layout == "parts":
                raise UserError(
                    f"{listing.place} has no folders train/ and val/ (or validation/, test/), which layout parts "
                    "asks for; rename them, or leave layout out"
                )
            return None
        prefix += f"{tops.pop()}/"
    bare = [name[len(prefix) :] for name in listing.empty if name.startswith(prefix)]
    bare = [name for name in bare if _part(name) == "val"]
    if val is None and bare:
        raise UserError(
            f"{listing.place}/{prefix}{bare[0]} holds no images; put validation images there, or remove it "
            "to hold out a part"
        )
    unused = sorted(tops - {train, val})
    for name in unused:
        if _part(name) is None and _slip(name):
            raise _doubt(listing, prefix, name)
    paths: dict[str, list[str]] = {}
    for path in listing.paths:
        paths.setdefault(path[len(prefix) :].split("/", 1)[0], []).append(path)
    if loose:
        unused.append(f"{loose} image(s) outside of them")
    return Parts(prefix, train, val, paths, unused)


def _first(names: Iterable[str], known: tuple[str, ...]) -> str | None:
    """The name that stands first in ``known``, whatever its case."""
    by_name = {name.casefold(): name for name in sorted(names, reverse=True)}
    return next((by_name[name] for name in known if name in by_name), None)


def _part(name: str) -> str | None:
    """ "train" or "val" for a part's exact name."""
    folded = name.casefold()
    return "train" if folded in TRAIN_NAMES else "val" if folded in VAL_NAMES else None


def _near(name: str) -> str | None:
    """The part's name that this may be meant for: one of several words ("train_images"), or a slip away."""
    words = re.split(r"[^a-z]+", name.casefold())
    return next((word for word in words if word in (*TRAIN_NAMES, *VAL_NAMES)), None) or _slip(name)


def _slip(name: str) -> str | None:
    """The part's name of which this is a misspelling."""
    known = (*TRAIN_NAMES, *VAL_NAMES)
    off = {part: slips(name.casefold(), part) for part in known}
    close = [part for part in known if off[part] <= (2 if len(part) > 6 else 1)]
    return min(close, key=lambda part: off[part], default=None)


def slips(a: str, b: str) -> int:
    """Letters wrong, missing, too many, or two swapped (optimal string alignment distance)."""
    before: list[int] = []
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        before, last = last, row
    return last[-1]


def _question(listing: Listing, prefix: str, tops: set[str]) -> None:
    """Raises where folders that would be taken for classes look like parts.

    They do when every name is a part's or near to one, when one is and holds the same folders as another: classes; and,
    whatever their names, when all hold the same two or more folders, as trn/ and vld/ do.
    """
    if len(tops) < 2:
        return
    likely = {name: part for name in sorted(tops) if (part := _part(name) or _near(name))}
    doubtful = [name for name in sorted(tops) if _part(name) is None]
    inside: dict[str, set[str]] = {name: set() for name in tops}
    for path in listing.paths:
        parts = path[len(prefix) :].split("/")
        if len(parts) > 2:
            inside[parts[0]].add(parts[1])
    # One shared folder is a habit of unpacked archives (cat/images, dog/images); several are a set of classes.
    first = inside[min(tops)]
    alike = len(first) > 1 and all(folders == first for folders in inside.values())
    if not likely and not alike:
        return
    shared = any(
        inside[name] & inside[other] for name in likely for other in tops if other != name and inside[other]
    )
    if len(tops) == len(likely) and not doubtful:
        raise UserError(
            f"{listing.place}/{prefix} holds {', '.join(sorted(tops))} but no train folder; add or rename it, or give "
            "--data.layout classes if the folders are classes"
        )
    if not doubtful or not (shared or alike or len(likely) == len(tops)):
        return
    worst = next((name for name in doubtful if name in likely), doubtful[0])
    raise _doubt(listing, prefix, worst)


def _doubt(listing: Listing, prefix: str, name: str) -> UserError:
    near = _near(name)
    others = "train/ and val/ (or validation/, test/)"
    way = f"rename it to {near}/ if that is meant" if near else f"name the parts {others}"
    return UserError(
        f"{listing.place}/{prefix}{name} is neither a part's name nor surely a class: {way}, or give "
        "--data.layout classes if the folders are classes"
    )


def class_prefix(paths: list[str]) -> str:
    """The common leading folder before class names, e.g. ``data/`` in ``data/cat/1.png``; mostly none."""
    prefix = ""
    while True:
        tops = {path[len(prefix) :].split("/", 1)[0] for path in paths}
        if len(tops) != 1 or not all(path[len(prefix) :].count("/") >= 2 for path in paths):
            return prefix
        prefix += f"{tops.pop()}/"


def classes_of(paths: list[str], prefix: str, what: str) -> list[str]:
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
