"""Looking a data set over before it is trained on: what is wrong in it, and what a person should know."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import ExifTags, Image

from deepvit.data.dataset import UNLEARNT, ImageData, class_note, count, short_classes, some
from deepvit.data.images import reading, to_rgb
from deepvit.data.sets import ImageSet
from deepvit.errors import UserError

IMBALANCE = 10.0
"""Images of the largest class for each of the smallest above which that is said."""
ELONGATED = 4.0
"""Longer side over shorter above which an image is odd."""
TINY = 16
"""Shorter side in pixels below which an image is odd, where others are larger."""
APART = 8.0
"""How many times larger or smaller than the median side an image may be."""


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        severity: "wrong" must be mended, "notice" should be known.
        text: one line.
        files: every image that it concerns, by name.
    """

    severity: Literal["wrong", "notice"]
    text: str
    files: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataCheck:
    """What was looked at and what was found, the wrong first."""

    data: str
    images: dict[str, int]
    """Images by part."""
    findings: list[Finding]

    @property
    def wrong(self) -> list[Finding]:
        """The findings that must be mended."""
        return [finding for finding in self.findings if finding.severity == "wrong"]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of figures to print beside the findings; no rows where there are none."""
        return [], []

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Seen:
    """What reading one image tells: its name and label, and either ``error`` or the rest.

    Attributes:
        size: (width, height) upright.
        mode: PIL's, as stored.
        digest: SHA-256 of size and RGB pixels: equal for the same picture in any lossless file.
        turned: whether its EXIF orientation turns it.
    """

    name: str
    label: int
    error: str = ""
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    digest: str = ""
    turned: bool = False


def check_classification(data: ImageData, *, progress: Callable[[int], None] | None = None) -> DataCheck:
    """Reads every image of both parts once, and says what is wrong.

    Args:
        data: the opened data.
        progress: called with the number of images read so far.

    Raises:
        UserError: a stream, which has no random access.
    """
    if not isinstance(data.train, ImageSet) or not isinstance(data.val, ImageSet):
        raise UserError(
            f"{data.spec} is a stream and cannot be checked; unpack it to a folder or a tar of images"
        )
    done = 0
    seen: dict[str, list[Seen]] = {}
    for part, images in (("train", data.train), ("val", data.val)):
        seen[part] = []
        for index in range(len(images)):
            seen[part].append(look(images, index))
            done += 1
            if progress is not None:
                progress(done)
    everything = [*seen["train"], *seen["val"]]
    findings = [
        *unreadable(everything),
        *wrong_labels(everything, data.num_classes),
        *in_both_parts(seen["train"], seen["val"]),
        *two_labels(everything, data.class_names),
        *repeated(seen["train"], "training"),
        *repeated(seen["val"], "validation"),
        *(Finding("notice", note) for note in data.notes),
        *short_of_images(data.train.targets, data.val.targets, data.class_names),
        *near_names(data.class_names),
        *imbalance(seen["train"], data.class_names),
        *odd_sizes(everything),
        *modes(everything),
        *turned(everything),
    ]
    findings.sort(key=lambda finding: finding.severity != "wrong")
    return DataCheck(data.spec, {part: len(images) for part, images in seen.items()}, findings)


def look(images: ImageSet, index: int) -> Seen:
    """Reads one image."""
    name, label = images.where(index), int(images.targets[index])
    try:
        with reading(name):
            image = images.open(index)
            picture = to_rgb(image)
    except UserError as error:
        return Seen(name, label, error=str(error))
    digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    return Seen(name, label, "", picture.size, image.mode, digest, _orientation(image) > 1)


def unreadable(seen: Iterable[Seen]) -> list[Finding]:
    """Images that cannot be read."""
    bad = [image for image in seen if image.error]
    if not bad:
        return []
    what = count(len(bad), "image", "images")
    return [
        Finding("wrong", f"{what} cannot be read: {some([b.error for b in bad], 1)}", [b.name for b in bad])
    ]


def wrong_labels(seen: Iterable[Seen], classes: int) -> list[Finding]:
    """Labels outside 0 .. classes - 1."""
    bad = [image for image in seen if not 0 <= image.label < classes]
    labels = some([str(label) for label in sorted({b.label for b in bad})])
    text = f"{count(len(bad), 'image has', 'images have')} a label outside 0 to {classes - 1}: {labels}"
    return [Finding("wrong", text, [b.name for b in bad])] if bad else []


def in_both_parts(train: Sequence[Seen], val: Sequence[Seen]) -> list[Finding]:
    """The same picture in training and validation: validation then measures memory."""
    known = {image.digest: image.name for image in train if not image.error}
    pairs = [(image.name, known[image.digest]) for image in val if not image.error and image.digest in known]
    if not pairs:
        return []
    what = count(len(pairs), "validation image is", "validation images are")
    text = f"{what} also among the training images: {pairs[0][0]} is {pairs[0][1]}"
    return [Finding("wrong", text, [name for pair in pairs for name in pair])]


def two_labels(seen: Iterable[Seen], names: Sequence[str]) -> list[Finding]:
    """The same picture under two classes."""
    groups = [group for group in _same(seen) if len({image.label for image in group}) > 1]
    if not groups:
        return []
    one, other = groups[0][0], next(image for image in groups[0] if image.label != groups[0][0].label)

    def called(image: Seen) -> str:
        return names[image.label] if 0 <= image.label < len(names) else str(image.label)

    text = (
        f"{count(len(groups), 'picture has', 'pictures have')} two labels: {one.name} is {called(one)}, "
        f"and {other.name}, the same, is {called(other)}"
    )
    return [Finding("wrong", text, [image.name for group in groups for image in group])]


def repeated(seen: Iterable[Seen], part: str) -> list[Finding]:
    """The same picture more than once in one part, under one label."""
    groups = [group for group in _same(seen) if len({image.label for image in group}) == 1]
    if not groups:
        return []
    extra = sum(len(group) - 1 for group in groups)
    what = count(extra, f"{part} image repeats another", f"{part} images repeat others")
    text = f"{what}: {groups[0][1].name} is {groups[0][0].name}"
    return [Finding("notice", text, [image.name for group in groups for image in group])]


def short_of_images(train: torch.Tensor, val: torch.Tensor, names: list[str]) -> list[Finding]:
    """Classes that one part or both lack, and those of a single image."""
    return [
        Finding("wrong" if what == UNLEARNT else "notice", class_note(what, which))
        for what, which in short_classes(train, val, names).items()
    ]


def near_names(names: Sequence[str]) -> list[Finding]:
    """Class names that differ in case, spaces or punctuation alone: one class written in two ways."""
    groups: dict[str, list[str]] = {}
    for name in names:
        plain = "".join(letter for letter in name.casefold() if letter.isalnum())
        groups.setdefault(plain or name, []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    return [Finding("notice", f"classes with nearly one name: {' and '.join(group)}") for group in alike]


def imbalance(train: Iterable[Seen], names: Sequence[str]) -> list[Finding]:
    """A largest class with more than ten training images for each of the smallest."""
    counts = Counter(image.label for image in train if 0 <= image.label < len(names))
    if len(counts) < 2:
        return []
    (most, largest), (least, smallest) = counts.most_common()[0], counts.most_common()[-1]
    if largest <= IMBALANCE * smallest:
        return []
    text = (
        f"training images are uneven: {names[most]} has {largest:,}, {names[least]} {smallest:,} "
        f"({largest / smallest:.0f} times fewer)"
    )
    return [Finding("notice", text)]


def odd_sizes(seen: Iterable[Seen]) -> list[Finding]:
    """Very long, very small, and images far from the others' size."""
    good = [image for image in seen if not image.error]
    if not good:
        return []
    sides = sorted(min(image.size) for image in good)
    median = sides[len(sides) // 2]
    kinds: list[tuple[str, list[Seen]]] = [
        (
            f"more than {ELONGATED:.0f} times as long as wide, of which the cut keeps little",
            [image for image in good if max(image.size) > ELONGATED * min(image.size)],
        ),
        (
            f"below {TINY} pixels, where half of the images have {median} or more",
            [image for image in good if min(image.size) < TINY and median >= 2 * TINY],
        ),
        (
            f"more than {APART:.0f} times larger or smaller than half of the images ({median} pixels)",
            [i for i in good if min(i.size) >= TINY and not median / APART <= min(i.size) <= median * APART],
        ),
    ]
    return [
        Finding(
            "notice",
            f"{count(len(odd), 'image is', 'images are')} {what}: {odd[0].name} has {odd[0].size[0]}×{odd[0].size[1]}",
            [image.name for image in odd],
        )
        for what, odd in kinds
        if odd
    ]


def modes(seen: Iterable[Seen]) -> list[Finding]:
    """Images stored in another way than most: transparent, 16-bit, grey among colour, for print."""
    good = [image for image in seen if not image.error]
    counts = Counter(_kind(image.mode) for image in good)
    if len(counts) < 2:
        return []
    usual = counts.most_common()[0][0]
    odd = [image for image in good if _kind(image.mode) != usual]
    parts = [f"{number:,} {kind}" for kind, number in counts.most_common()[1:]]
    text = f"images are {usual}, but {', '.join(parts)}: {odd[0].name} is {_kind(odd[0].mode)}"
    return [Finding("notice", text, [image.name for image in odd])]


def turned(seen: Iterable[Seen]) -> list[Finding]:
    """Images that their EXIF orientation turns: read upright here, and not by every program."""
    found = [image.name for image in seen if image.turned]
    what = count(len(found), "image is", "images are")
    return (
        [Finding("notice", f"{what} turned by EXIF orientation (read upright here): {found[0]}", found)]
        if found
        else []
    )


def _same(seen: Iterable[Seen]) -> list[list[Seen]]:
    groups: dict[str, list[Seen]] = {}
    for image in seen:
        if not image.error:
            groups.setdefault(image.digest, []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def _kind(mode: str) -> str:
    """A PIL mode in words."""
    words = {
        "RGB": "colour",
        "P": "colour by palette",
        "L": "grey",
        "1": "black and white",
        "CMYK": "CMYK (print)",
    }
    if mode.startswith("I") or mode == "F":
        return "grey of 16 bits or more"
    return words.get(mode, "transparent" if mode in ("RGBA", "LA", "PA", "RGBa") else mode)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation) or 1)
    except Exception:  # as in ``upright``: metadata that cannot be parsed
        return 1
