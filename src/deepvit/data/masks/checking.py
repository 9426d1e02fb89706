"""Looking a data set with masks over before it is trained on: what is wrong in it, and what a person should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepvit.data.checking import (
    DataCheck,
    Finding,
    Seen,
    in_both_parts,
    look,
    modes,
    odd_sizes,
    repeated,
    turned,
    unreadable,
)
from deepvit.data.dataset import UNLEARNT, class_note, count, some
from deepvit.data.masks.dataset import MaskData
from deepvit.data.masks.ids import TableIds
from deepvit.data.masks.scan import THREADS, Counted, count_masks
from deepvit.data.masks.sets import file_pair

MUCH_IGNORED = 0.3
"""Share of pixels that do not count above which that is said."""
RARE = 1e-3
"""Share of the training pixels below which a class is called rare."""
PARTS = ("train", "val")


@dataclass(frozen=True)
class MaskCheck(DataCheck):
    """As ``DataCheck``, with the histogram of the classes."""

    classes: list[dict[str, Any]] = field(default_factory=list)
    """A class a row: name, and by part its share of the pixels that count and the images that hold it."""
    ignored: dict[str, float] = field(default_factory=dict)
    """Share of all pixels that count for nothing, by part."""

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of the histogram, void last."""
        heads = ["class", *(f"{part} {what}" for part in PARTS for what in ("pixels %", "images"))]
        rows = [
            [
                row["name"],
                *(
                    text
                    for part in PARTS
                    for text in (percent(row[part]["share"]), f"{row[part]['images']:,}")
                ),
            ]
            for row in self.classes
        ]
        rows.append(
            ["(void, of all)", *(text for part in PARTS for text in (percent(self.ignored[part]), ""))]
        )
        return heads, rows


def check_masks(data: MaskData, *, progress: Callable[[int], None] | None = None) -> MaskCheck:
    """Reads every image and every mask of both parts once, and says what is wrong.

    Args:
        data: data as ``open_unchecked`` gives it.
        progress: called with the number of pairs read so far.
    """
    done = 0
    seen: dict[str, list[Seen]] = {}
    masks: dict[str, list[Counted]] = {}
    for part, images in zip(PARTS, (data.train, data.val), strict=True):
        seen[part], masks[part] = [], []
        with ThreadPoolExecutor(THREADS) as pool:
            looks = pool.map(lambda index, images=images: look(images, index), range(len(images)))
            for image, mask in zip(looks, count_masks(data, part), strict=True):  # type: ignore[arg-type]
                seen[part].append(image)
                masks[part].append(mask)
                done += 1
                if progress is not None:
                    progress(done)
    images_seen, every = [*seen["train"], *seen["val"]], [*masks["train"], *masks["val"]]
    pixels = {part: np.sum([mask.pixels for mask in masks[part]], axis=0) for part in PARTS}
    holding = {part: np.sum([mask.pixels > 0 for mask in masks[part]], axis=0) for part in PARTS}
    findings = [
        *(Finding("wrong", fault) for fault in data.faults),
        *unreadable(images_seen),
        *unusable(every, {image.name: image for image in images_seen if image.error}),
        *unknown_ids(every, data.num_classes),
        *nothing_but_void(every),
        *in_both_parts(seen["train"], seen["val"]),
        *off_by_one(every, data, pixels["train"] + pixels["val"]),
        *repeated(seen["train"], "training"),
        *repeated(seen["val"], "validation"),
        *(Finding("notice", note) for note in data.notes),
        *missing_classes(holding["train"], holding["val"], data.class_names),
        *much_ignored(masks),
        *rare(pixels["train"], data.class_names),
        *odd_sizes(images_seen),
        *modes(images_seen),
        *turned(images_seen),
    ]
    findings.sort(key=lambda finding: finding.severity != "wrong")
    rows = [
        {
            "name": name,
            **{
                part: {
                    "share": float(pixels[part][label] / max(int(pixels[part].sum()), 1)),
                    "images": int(holding[part][label]),
                }
                for part in PARTS
            },
        }
        for label, name in enumerate(data.class_names)
    ]
    return MaskCheck(
        data.spec,
        {part: len(masks[part]) for part in PARTS},
        findings,
        rows,
        {part: share_ignored(masks[part]) for part in PARTS},
    )


def percent(share: float) -> str:
    """``12.3``; a class that is there is never ``0``."""
    return f"{100 * share:.3g}" if share else "0"


def unusable(masks: Sequence[Counted], bad_images: dict[str, Seen]) -> list[Finding]:
    """Masks that cannot be read, are not of their image's size, or are in colour without a colour map."""
    kinds = (
        ("of another size than its image", "of another size than their images", "must be of one size"),
        (
            "in colour without a colour map",
            "in colour without a colour map",
            "which does not say its classes",
        ),
        ("that cannot be read", "that cannot be read", "cannot be read"),
    )
    # an image that cannot be opened makes its mask's size unknowable, and has been named already
    errors = [
        m for m in masks if m.error and not any(m.error.startswith(f"image {name} ") for name in bad_images)
    ]
    findings = []
    for one, several, mark in kinds:
        bad = [mask for mask in errors if mark in mask.error]
        errors = [mask for mask in errors if mark not in mask.error]
        if bad:
            what = f"{count(len(bad), 'mask', 'masks')} {one if len(bad) == 1 else several}"
            findings.append(Finding("wrong", f"{what}: {bad[0].error}", [mask.name for mask in bad]))
    if errors:
        text = f"{count(len(errors), 'mask', 'masks')} that cannot be used: {errors[0].error}"
        findings.append(Finding("wrong", text, [mask.name for mask in errors]))
    return findings


def unknown_ids(masks: Sequence[Counted], classes: int) -> list[Finding]:
    """Ids or colours that mean no class, the most frequent first."""
    bad = [mask for mask in masks if mask.strangers]
    if not bad:
        return []
    holders: Counter[str] = Counter()
    for mask in bad:
        holders.update(mask.strangers.keys())
    shown = [f"{value} in {number:,} (e.g. {_holder(bad, value)})" for value, number in holders.most_common()]
    what = count(len(bad), "mask holds", "masks hold")
    return [
        Finding(
            "wrong",
            f"{what} ids or colours beyond the {classes} classes: {some(shown, 4)}",
            [m.name for m in bad],
        )
    ]


def _holder(masks: Sequence[Counted], value: str) -> str:
    return next(mask.name for mask in masks if value in mask.strangers)


def nothing_but_void(masks: Sequence[Counted]) -> list[Finding]:
    """Masks in which no pixel counts."""
    bad = [m.name for m in masks if not m.error and not m.strangers and not int(m.pixels.sum())]
    what = count(len(bad), "mask holds", "masks hold")
    return [Finding("wrong", f"{what} nothing but void: {some(bad, 3)}", bad)] if bad else []


def off_by_one(masks: Sequence[Counted], data: MaskData, pixels: Any) -> list[Finding]:
    """Ids that seem to count from 1 where they are read from 0, or from 0 where they are read from 1."""
    first = _first_id(data)
    if first is None:
        return []
    after = str(first + data.num_classes)
    beyond = sum(after in mask.strangers for mask in masks)
    if not int(pixels[0]) and beyond:
        return [
            Finding(
                "wrong",
                f"ids seem to be off by one: {first} never occurs, and {after} occurs in {count(beyond, 'mask', 'masks')}; "
                f"try --data.first_id {first + 1}",
            )
        ]
    if not int(pixels[0]) and data.num_classes > 1:
        return [
            Finding(
                "notice",
                f"id {first} ({data.class_names[0]}) never occurs: if ids count from {first + 1}, give --data.first_id "
                f"{first + 1}",
            )
        ]
    if first and not int(pixels[-1]) and any(mask.ignored for mask in masks):
        last = first + data.num_classes - 1
        return [
            Finding(
                "notice",
                f"id {last} ({data.class_names[-1]}) never occurs, and ids below {first} are void: if ids count from "
                f"{first - 1}, give --data.first_id {first - 1}",
            )
        ]
    return []


def _first_id(data: MaskData) -> int | None:
    """The id of class 0 in mask files whose ids count; None for colours, other tables and drawn scenes."""
    pair = file_pair(data.train, 0)
    ids = pair[0].ids if pair else None
    if not isinstance(ids, TableIds):
        return None
    places = [np.flatnonzero(ids.table == label) for label in range(ids.count)]
    numbers = [int(place[0]) for place in places if len(place) == 1]
    return numbers[0] if numbers == list(range(numbers[0], numbers[0] + ids.count)) else None


def missing_classes(train: Any, val: Any, names: Sequence[str]) -> list[Finding]:
    """Classes that one part or both lack: ``train`` and ``val`` are the images that hold each."""
    kinds = (
        ("wrong", UNLEARNT, (train == 0) & (val > 0)),
        ("notice", "without any pixel", (train == 0) & (val == 0)),
        ("notice", "without validation images, of which no figure will tell", (train > 0) & (val == 0)),
    )
    return [
        Finding(
            "wrong" if severity == "wrong" else "notice",
            class_note(what, [names[i] for i in np.flatnonzero(which).tolist()]),
        )
        for severity, what, which in kinds
        if which.any()
    ]


def share_ignored(masks: Sequence[Counted]) -> float:
    """Share of all pixels that count for nothing."""
    return sum(mask.ignored for mask in masks) / max(sum(mask.total for mask in masks), 1)


def much_ignored(masks: dict[str, list[Counted]]) -> list[Finding]:
    """A part of which much counts for nothing."""
    shares = {part: share_ignored(counted) for part, counted in masks.items()}
    return [
        Finding("notice", f"{share:.0%} of the pixels of {part} count for nothing (void)")
        for part, share in shares.items()
        if share > MUCH_IGNORED
    ]


def rare(pixels: Any, names: Sequence[str]) -> list[Finding]:
    """Classes with few of the training pixels."""
    shares = pixels / max(int(pixels.sum()), 1)
    few = [f"{names[i]} {shares[i]:.2%}" for i in np.argsort(shares).tolist() if 0 < shares[i] < RARE]
    what = count(len(few), "class has", "classes have")
    text = f"{what} less than {RARE:.1%} of the training pixels ({some(few)}); class weights may help"
    return [Finding("notice", text)] if few else []
