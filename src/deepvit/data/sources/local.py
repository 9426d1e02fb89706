"""Local files: a folder of class folders, of parts, or of a pair of tars; and a single tar of either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from timm.utils.misc import natural_key

from deepvit.data.dataset import ImageData, count, some
from deepvit.data.layout import (
    TRAIN_NAMES,
    VAL_NAMES,
    Listing,
    class_index,
    class_prefix,
    classes_of,
    list_folder,
    list_tar,
    split_by_name,
)
from deepvit.data.options import ClassMapOption, HeldOutOptions, LayoutOption, load_class_map
from deepvit.data.sets import ImageSet
from deepvit.data.sources.source import Source
from deepvit.data.split import hold_out
from deepvit.errors import UserError


@dataclass
class LocalOptions(LayoutOption, HeldOutOptions, ClassMapOption):
    """Options of folders and tars."""


def list_place(spec: str) -> Listing:
    """Every image in a folder or a tar; ``UserError`` when it is neither, or holds none."""
    path = Path(spec).expanduser()
    if path.is_dir():
        listing = list_folder(path)
    elif path.is_file() and path.suffix == ".tar":
        listing = list_tar(path)
    elif path.exists():
        raise UserError(f"data {spec} is neither a folder nor a .tar; unpack it, or see `deepvit list data`")
    else:
        raise UserError(f"{spec} does not exist; give a folder, a .tar or an image")
    if not listing.paths:
        tars = sorted(p.name for p in path.glob("*.tar")) if path.is_dir() else []
        if tars:
            raise UserError(
                f"{spec} holds tars but no pair train.tar and val.tar (it has {some(tars)}); rename them, or give one tar"
            )
        raise UserError(f"no images found in {spec}; expected class folders with image files in them")
    return listing


def open_local(spec: str, options: LocalOptions) -> ImageData:
    """A folder or a tar for classification."""
    mapping = load_class_map(options.class_map)
    tars = _tar_pair(Path(spec).expanduser()) if options.layout != "classes" else None
    if tars is not None:
        train, val = list_tar(tars[0]), list_tar(tars[1])
        for listing in (train, val):
            if not listing.paths:
                raise UserError(f"no images found in {listing.place}; expected class folders in it")
        parts = [(part, part.paths, class_prefix(part.paths), str(part.place)) for part in (train, val)]
        _refuse_held_out(spec, options, f"{tars[0].name} and {tars[1].name}")
        return _two_parts(spec, parts, mapping, f"{tars[0].name} and {tars[1].name}")
    listing = list_place(spec)
    found = split_by_name(listing, options.layout)
    if found is None:
        prefix = class_prefix(listing.paths)
        return _one_part(spec, listing, listing.paths, prefix, options, mapping)
    if found.val is None:
        inside = f"{found.prefix}{found.train}/"
        return _one_part(spec, listing, found.paths[found.train], inside, options, mapping)
    parts = [
        (listing, found.paths[name], f"{found.prefix}{name}/", f"{spec}/{found.prefix}{name}")
        for name in (found.train, found.val)
    ]
    split = f"folders {found.train}/ and {found.val}/"
    _refuse_held_out(spec, options, split)
    data = _two_parts(spec, parts, mapping, split)
    data.notes += _empty_notes(listing)
    if found.unused:
        data.notes.append(f"not used beside {found.train}/ and {found.val}/: {some(found.unused)}")
    return data


def _tar_pair(path: Path) -> tuple[Path, Path] | None:
    """train.tar with its sibling val.tar or test.tar: given as the folder of both or as train.tar itself."""
    for train_name in TRAIN_NAMES:
        train = path / f"{train_name}.tar" if path.is_dir() else path
        if train.name == f"{train_name}.tar" and train.is_file():
            for val_name in VAL_NAMES:
                if (val := train.with_name(f"{val_name}.tar")).is_file():
                    return train, val
    return None


def _refuse_held_out(spec: str, options: HeldOutOptions, split: str) -> None:
    """An option that would be ignored is an error."""
    for name in ("val_fraction", "split_seed"):
        if getattr(options, name) is not None:
            raise UserError(
                f"--data.{name} means nothing for {spec}, which has {split} of its own; leave it out"
            )


def _one_part(
    spec: str,
    listing: Listing,
    paths: list[str],
    prefix: str,
    options: HeldOutOptions,
    mapping: dict[str, int] | None,
) -> ImageData:
    names = classes_of(paths, prefix, spec)
    labels = class_index(names, mapping)
    images = listing.images(paths, [labels[name] for name in names])
    train, val, split = hold_out(images.targets, options.val_fraction, options.split_seed)
    if len(val) == 0:
        raise UserError(f"{spec} has one image a class, so none can validate; add images or a val/ folder")
    return ImageData(
        spec, images.subset(train), images.subset(val), _ordered(labels), split, notes=_empty_notes(listing)
    )


def _two_parts(
    spec: str,
    parts: list[tuple[Listing, list[str], str, str]],
    mapping: dict[str, int] | None,
    split: str,
) -> ImageData:
    train_names, val_names = (classes_of(*part[1:]) for part in parts)
    strangers = sorted(set(val_names) - set(train_names), key=natural_key)
    if strangers:
        shown = some([repr(name) for name in strangers])
        raise UserError(
            f"{parts[1][3]} has {count(len(strangers), 'class', 'classes')} that {parts[0][3]} has not: {shown}; "
            "add training images of them or take them out"
        )
    labels = class_index(train_names, mapping)
    sets: list[ImageSet] = [
        listing.images(paths, [labels[name] for name in names])
        for (listing, paths, _, _), names in zip(parts, (train_names, val_names), strict=True)
    ]
    return ImageData(spec, sets[0], sets[1], _ordered(labels), split)


def _ordered(labels: Mapping[str, int]) -> list[str]:
    return sorted(labels, key=lambda name: labels[name])


def _empty_notes(listing: Listing) -> list[str]:
    empty = listing.empty
    if not empty:
        return []
    return [f"{count(len(empty), 'folder holds', 'folders hold')} no images: {some(empty)}"]


def _is_tar(spec: str) -> bool:
    path = Path(spec).expanduser()
    return path.suffix == ".tar" and path.is_file()


FOLDER = Source(
    name="folder",
    forms=(
        ("FOLDER", "train/ and val/ (or validation/, test/), each with one folder a class"),
        ("FOLDER", "one folder a class; 20% of each class is held out for validation"),
        ("FOLDER", "train.tar and val.tar (or test.tar), each with one folder a class"),
    ),
    needs="local files",
    options=LocalOptions,
    open=open_local,
    claims=lambda spec: not _is_tar(spec) and Path(spec).expanduser().exists(),
)
TAR = Source(
    name="tar",
    forms=(
        (
            "FILE.tar",
            "one folder a class, or train/ and val/ of them; train.tar takes val.tar or test.tar beside it",
        ),
    ),
    needs="a local file",
    options=LocalOptions,
    open=open_local,
    claims=_is_tar,
)
