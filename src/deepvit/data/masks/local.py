"""Folders of images and masks: ``images/`` and ``masks/`` with a part's folder in each, or without."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from deepvit.data.dataset import some
from deepvit.data.images import decode, reading
from deepvit.data.layout import TRAIN_NAMES, VAL_NAMES
from deepvit.data.masks.dataset import MaskData
from deepvit.data.masks.ids import VOID, VOID_NAME, ColourIds, Ids, TableIds, ids_of, read_colours, void_of
from deepvit.data.masks.pairs import Pairs, pair
from deepvit.data.masks.palette import Colour, palette
from deepvit.data.masks.sets import PairedFiles
from deepvit.data.options import (
    ClassCountOption,
    ClassMapOption,
    HeldOutOptions,
    MaskIdOptions,
    load_class_map,
)
from deepvit.data.sources.source import Source
from deepvit.data.split import DEFAULT_VAL_FRACTION, stratified_split
from deepvit.errors import UserError

IMAGES = ("images", "image", "imgs", "img")
MASKS = ("masks", "mask", "annotations", "labels", "label")
COUNTED = 4000
"""Masks at most that are all read to count the classes, where nobody says how many there are."""


@dataclass
class MaskFolderOptions(MaskIdOptions, ClassCountOption, HeldOutOptions, ClassMapOption):
    """Options of folders of images and masks."""


@dataclass
class Classes:
    """What the classes are, and what the pixels of masks mean."""

    names: list[str]
    colours: list[Colour]
    ids: Ids


def child(place: Path, names: tuple[str, ...]) -> Path | None:
    """The folder in ``place`` whose name stands first in ``names``, whatever its case."""
    if not place.is_dir():
        return None
    by_name = {path.name.casefold(): path for path in sorted(place.iterdir(), reverse=True) if path.is_dir()}
    return next((by_name[name] for name in names if name in by_name), None)


def is_folder(spec: str) -> bool:
    """Whether there is something at that path: what it lacks, ``open_folder`` says."""
    return Path(spec).expanduser().exists()


def looks_like(spec: str) -> bool:
    """Whether a folder holds images and masks, at its top or in a folder of a part."""
    root = Path(spec).expanduser()
    places = [root, *(child(root, (name,)) for name in (*TRAIN_NAMES, *VAL_NAMES))] if root.is_dir() else []
    return any(p is not None and child(p, IMAGES) is not None and child(p, MASKS) is not None for p in places)


def parts_of(root: Path) -> dict[str, Pairs]:
    """Pairs by the name of the part's folder, ``""`` where there are no parts.

    Takes ``images/PART`` and ``masks/PART``, or ``PART/images`` and ``PART/masks``.
    """
    images, masks = child(root, IMAGES), child(root, MASKS)
    if images is not None and masks is not None:
        inside = [{p.name: p for p in place.iterdir() if p.is_dir()} for place in (images, masks)]
        named = [name for name in inside[0] if name.casefold() in (*TRAIN_NAMES, *VAL_NAMES)]
        if not named:
            return {"": pair(images, masks)}
        lonely = [name for name in named if name not in inside[1]]
        if lonely:
            raise UserError(f"{masks} has no folder {lonely[0]}/, which {images} has; add it")
        return {name: pair(inside[0][name], inside[1][name]) for name in sorted(named)}
    found = {}
    for part in sorted(path for path in root.iterdir() if path.name.casefold() in (*TRAIN_NAMES, *VAL_NAMES)):
        images, masks = child(part, IMAGES), child(part, MASKS)
        if images is not None and masks is not None:
            found[part.name] = pair(images, masks)
    if not found:
        raise UserError(
            f"{root} holds no images/ and masks/ (each with train/ and val/ or test/ in it, or with the files themselves); "
            "`deepvit list data` shows the forms of data with masks"
        )
    return found


def open_folder(spec: str, options: MaskFolderOptions) -> MaskData:
    """A folder of images and masks of the same names."""
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise UserError(f"{spec} is no folder; give one with images/ and masks/ in it")
    parts = parts_of(root)
    by_name = {name.casefold(): name for name in parts}
    train = next((by_name[name] for name in TRAIN_NAMES if name in by_name), None)
    val = next((by_name[name] for name in VAL_NAMES if name in by_name), None)
    if train is None and "" not in parts:
        raise UserError(f"{spec} holds {some(sorted(parts))} but no train folder; add or rename it")
    first = parts[train if train is not None else ""]
    if not first.images:
        folder = f"{spec} ({train}/)" if train else spec
        raise UserError(
            f"{folder} holds no image that has a mask of the same name "
            f"({len(first.images_alone):,} images, {len(first.masks_alone):,} masks)"
        )
    if val is not None and not parts[val].images:
        raise UserError(
            f"{spec}: its part {val}/ holds no image that has a mask; add some, or take the part out"
        )
    classes = classes_of(spec, options, first.masks)
    everything = PairedFiles(first.images, first.masks, classes.ids)
    faults = [
        f"{spec}: {fault}" for name in parts if name in (train, val, "") for fault in parts[name].faults()
    ]
    notes = []
    if val is None:
        kept, held, split = _held_out(spec, options, len(everything))
        data = (everything.subset(kept), everything.subset(held))
    else:
        for name in ("val_fraction", "split_seed"):
            if getattr(options, name) is not None:
                raise UserError(
                    f"--data.{name} means nothing for {spec}, which has a part {val}/ of its own; leave it out"
                )
        other = parts[val]
        data = (everything, PairedFiles(other.images, other.masks, classes.ids))
        split = f"folders {train}/ and {val}/"
        unused = sorted(set(parts) - {train, val})
        if unused:
            notes.append(f"not used beside {train}/ and {val}/: {some(unused)}")
    return MaskData(
        spec,
        *data,
        class_names=classes.names,
        palette=classes.colours,
        split=split,
        ignore_index=classes.ids.ignore_index,
        notes=notes,
        faults=faults,
    )


def _held_out(spec: str, options: HeldOutOptions, images: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    if images < 2:
        raise UserError(
            f"{spec} has one image with a mask, so none can validate; add images or a val/ folder"
        )
    fraction = DEFAULT_VAL_FRACTION if options.val_fraction is None else options.val_fraction
    seed = options.split_seed or 0
    if seed < 0:
        raise UserError(f"split_seed={seed} must not be negative")
    kept, held = stratified_split(torch.zeros(images, dtype=torch.int64), fraction, seed=seed)
    return kept, held, f"random split, {fraction:.0%} for validation, seed {seed}"


def classes_of(spec: str, options: MaskFolderOptions, masks: list[Path]) -> Classes:
    """Names, colours and meaning by the options; what they leave open is told from the training masks."""
    if options.colours is not None:
        return _by_colour(options)
    void = [options.void] if isinstance(options.void, int) else list(options.void or ())
    first = options.first_id or 0
    if first < 0 or any(number < 0 for number in void):
        raise UserError(f"first_id={first} and void={void} must not be negative")
    mapping = load_class_map(options.class_map)
    if mapping is not None and options.num_classes not in (None, len(mapping)):
        raise UserError(
            f"num_classes={options.num_classes}, but the class map names {len(mapping)}; give one of them"
        )
    number = len(mapping) if mapping is not None else options.num_classes
    if number is None:
        number = _counted(spec, masks, void, first)
    if number < 2:
        raise UserError(
            f"{spec} has {number} class(es) beside void: there is nothing to tell apart (255 is void; if it is a class, "
            "name the classes by --data.colours)"
        )
    inside = [value for value in void if first <= value < first + number]
    if inside and mapping is None:
        # a void id among the classes: the ids after it move up, so that no class is without pixels
        return _without(number, void, first)
    if inside:
        raise UserError(f"void={inside[0]} is also the id of a class of the class map; leave one of them out")
    names = (
        sorted(mapping, key=lambda name: mapping[name]) if mapping else [f"class {i}" for i in range(number)]
    )
    return Classes(names, _shown(masks[0], number, first), TableIds.counted(number, void, first))


def _without(number: int, void: list[int], first: int) -> Classes:
    """``num_classes`` ids from ``first`` on, of which some are void."""
    kept = [value for value in range(first, first + number) if value not in void]
    nothing = void_of(len(kept))
    table = dict.fromkeys((*range(first), VOID, *void), nothing) | {value: i for i, value in enumerate(kept)}
    hint = "mend it, or give --data.num_classes or --data.void (ids that count for nothing)"
    return Classes([f"class {value}" for value in kept], palette(len(kept)), TableIds(len(kept), table, hint))


def _by_colour(options: MaskFolderOptions) -> Classes:
    for name in ("void", "first_id", "num_classes", "class_map"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--data.{name} means nothing beside --data.colours, which names the classes; leave it out"
            )
    assert options.colours is not None
    colours = read_colours(options.colours)
    names = [name for name in colours if name.casefold() != VOID_NAME]
    void = [shade for name, shades in colours.items() if name.casefold() == VOID_NAME for shade in shades]
    return Classes(names, [colours[name][0] for name in names], ColourIds([colours[n] for n in names], void))


def _counted(spec: str, masks: list[Path], void: list[int], first: int) -> int:
    """Classes in the training masks: the largest id that counts, from ``first`` on."""
    if len(masks) > COUNTED:
        raise UserError(
            f"{spec} has {len(masks):,} training masks, too many to read them all for the number of classes; give "
            "--data.num_classes N, or --data.class_map FILE with their names"
        )

    def largest(path: Path) -> int:
        try:
            with reading(str(path)):
                mask = decode(path)
        except UserError:
            return -1  # reading it in earnest will say so
        ids = np.unique(ids_of(mask, str(path)))
        counting = [int(value) for value in ids if value not in (VOID, *void)]
        return max(counting, default=-1)

    with ThreadPoolExecutor(4) as pool:
        return max(pool.map(largest, masks)) - first + 1


def _shown(mask: Path, number: int, first: int) -> list[Colour]:
    """The colours of a palette mask, where it has enough different ones; else the usual ones."""
    try:
        with reading(str(mask)):
            image = decode(mask)
    except UserError:
        return palette(number)  # reading it in earnest will say so
    if image.mode == "P" and (flat := image.getpalette()):
        colours = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
        chosen = colours[first : first + number]
        if len(set(chosen)) == number:
            return chosen
    return palette(number)


MASK_FOLDER = Source(
    name="folder",
    forms=(
        (
            "FOLDER",
            "images/ and masks/ of the same names, each with train/ and val/ (or test/); masks PNG: ids or colours",
        ),
        ("FOLDER", "images/ and masks/ without parts; a fifth of the images is held out for validation"),
    ),
    needs="local files",
    options=MaskFolderOptions,
    open=open_folder,
    claims=is_folder,
)
