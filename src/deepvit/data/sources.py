"""One string to a data set: ``digits``, folders, tars, and timm's ``torch/``, ``hfds/``, ``wds/`` schemes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepvit.data.digits import CLASS_NAMES as DIGIT_NAMES
from deepvit.data.digits import digits
from deepvit.data.images import ImageSet
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
    unlabelled,
)
from deepvit.data.readers import StreamImages, open_hfds, open_torch, open_wds
from deepvit.data.split import stratified_split
from deepvit.errors import UserError

DEFAULT_VAL_FRACTION = 0.2
SCHEMES = ("torch/", "hfds/", "wds/")


@dataclass
class ImageData:
    """A data set for classification: what to train and to validate on, and what the classes are called."""

    spec: str
    train: ImageSet | StreamImages
    val: ImageSet | StreamImages
    class_names: list[str]
    split: str
    """One sentence: how training and validation images were told apart."""
    mirror: bool = True
    """Whether a mirrored image keeps its class (not so for handwriting)."""
    notes: list[str] = field(default_factory=list)
    """Things a person should know, e.g. empty class folders."""

    in_chans = 3

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def __str__(self) -> str:
        return (
            f"{self.spec}: {self.num_classes} classes, {len(self.train):,} training and "
            f"{len(self.val):,} validation images ({self.split})"
        )


def table() -> list[dict[str, str]]:
    """Rows for ``deepvit list data``: the string to give, what it means, and what it needs."""
    train, val = digits()
    rows = [
        (
            "digits",
            f"handwritten digits 0-9, grey 8×8, {len(train):,} for training and {len(val)} for testing "
            "(fixed stratified split)",
            "nothing (built in)",
        ),
        ("FOLDER", "train/ and val/ (or validation/, test/), each with one folder a class", "local files"),
        ("FOLDER", "one folder a class; 20% of each class is held out for validation", "local files"),
        ("FOLDER", "train.tar and val.tar (or test.tar), each with one folder a class", "local files"),
        ("FILE.tar", "one folder a class, or train/ and val/ of them; train.tar takes val.tar or test.tar "
         "beside it", "a local file"),
        ("torch/NAME", "torchvision's cifar10, cifar100, mnist, fashion_mnist, kmnist, qmnist, ... by timm's "
         "reader", "a network once"),
        ("hfds/NAME", "a data set of the Hugging Face hub, or a local folder that its library loads, by "
         "timm's reader", "pip install 'deepvit[hf]'; a network once"),
        ("wds/PLACE", "WebDataset shards in a folder or at an address, by timm's reader",
         "pip install 'deepvit[wds]'"),
    ]  # fmt: skip
    return [{"data": data, "what": what, "needs": needs} for data, what, needs in rows]


def open_data(
    spec: str,
    *,
    seed: int = 0,
    val_fraction: float | None = None,
    class_map: Mapping[str, int] | str | Path | None = None,
    root: str | Path | None = None,
    num_classes: int | None = None,
) -> ImageData:
    """Opens a data set for classification by its string (``deepvit list data`` shows the forms).

    ``seed`` and ``val_fraction`` (default 0.2) choose the held-out part where the source has no validation
    images of its own; keep ``seed`` the same for runs that are to be compared. ``class_map`` (a mapping, or
    a text file with one class name a line) fixes the label of every class name. ``root`` is where
    ``torch/`` and ``hfds/`` keep their files (default: their own cache folders). ``num_classes`` is needed
    for ``wds/`` shards that are not local. Raises ``UserError``, one line, for what a person can mend.
    """
    mapping = load_class_map(class_map)
    if spec == "digits":
        train, val = digits()
        return ImageData(
            spec, train, val, list(DIGIT_NAMES), "fixed stratified split, 20% for testing", mirror=False
        )
    scheme, _, name = spec.partition("/")
    if scheme in ("torch", "hfds", "wds") and name:
        fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
        if scheme == "torch":
            opened = open_torch(name, root)
        elif scheme == "hfds":
            opened = open_hfds(name, root, fraction, seed)
        else:
            opened = open_wds(name, mapping, num_classes)
        return ImageData(spec, *opened)
    return _open_local(spec, seed, val_fraction, mapping)


def open_images(spec: str | Path) -> ImageSet:
    """Images for diagnosis or prediction, without labels: a file, a folder (all below it), or a tar."""
    path = Path(spec)
    if path.is_file() and path.suffix != ".tar":
        return unlabelled(Listing(path.parent, [path.name]))
    return unlabelled(_listing(str(spec)))


def load_class_map(source: Mapping[str, int] | str | Path | None) -> dict[str, int] | None:
    """A class map from a mapping or a text file with one class name a line (line number = label, from 0)."""
    if source is None:
        return None
    if isinstance(source, Mapping):
        mapping = dict(source)
    else:
        if not Path(source).is_file():
            raise UserError(f"class map {source} does not exist; give a text file with one class name a line")
        lines = Path(source).read_text(encoding="utf-8").split("\n")
        mapping = {line.strip(): label for label, line in enumerate(x for x in lines if x.strip())}
    if sorted(mapping.values()) != list(range(len(mapping))):
        raise UserError("a class map must give each class its own label, 0 to the number of classes - 1")
    return mapping


def _listing(spec: str) -> Listing:
    path = Path(spec).expanduser()
    if path.is_dir():
        listing = list_folder(path)
    elif path.is_file() and path.suffix == ".tar":
        listing = list_tar(path)
    elif path.exists():
        raise UserError(f"data {spec} is neither a folder nor a .tar; unpack it, or see `deepvit list data`")
    else:
        raise UserError(f"data {spec!r} does not exist{_nearest(spec)}")
    if not listing.paths:
        raise UserError(f"no images found in {spec}; expected class folders with image files in them")
    return listing


def _nearest(spec: str) -> str:
    scheme, slash, rest = spec.partition("/")
    near = difflib.get_close_matches(spec.lower(), ["digits"], cutoff=0.6)
    if slash and rest:
        known = difflib.get_close_matches(scheme.lower() + "/", SCHEMES, cutoff=0.6)
        near = [match + rest for match in known]
    offer = f"; did you mean {near[0]!r}?" if near else " (neither a folder, a .tar, nor a known name)"
    return offer + " `deepvit list data` shows what there is"


def _open_local(
    spec: str, seed: int, val_fraction: float | None, mapping: dict[str, int] | None
) -> ImageData:
    path = Path(spec).expanduser()
    tars = _tar_pair(path)
    if tars is not None:
        train, val = list_tar(tars[0]), list_tar(tars[1])
        for listing in (train, val):
            if not listing.paths:
                raise UserError(f"no images found in {listing.place}; expected class folders in it")
        parts = [(part, part.paths, class_prefix(part.paths), str(part.place)) for part in (train, val)]
        return _two_parts(spec, parts, mapping, f"{tars[0].name} and {tars[1].name}")
    listing = _listing(spec)
    named = split_by_name(listing)
    if named is None:
        return _one_part(
            spec, listing, listing.paths, class_prefix(listing.paths), seed, val_fraction, mapping
        )
    splits, prefix = named
    train_name = next(name for name in TRAIN_NAMES if name in splits)
    val_name = next((name for name in VAL_NAMES if name in splits), None)
    if val_name is None:
        inside = f"{prefix}{train_name}/"
        return _one_part(spec, listing, splits[train_name], inside, seed, val_fraction, mapping)
    parts = [
        (listing, splits[name], f"{prefix}{name}/", f"{spec}/{prefix}{name}")
        for name in (train_name, val_name)
    ]
    data = _two_parts(spec, parts, mapping, f"folders {train_name}/ and {val_name}/")
    data.notes += _empty_notes(listing)
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


def _one_part(
    spec: str,
    listing: Listing,
    paths: list[str],
    prefix: str,
    seed: int,
    val_fraction: float | None,
    mapping: dict[str, int] | None,
) -> ImageData:
    names = classes_of(listing, paths, prefix, spec)
    labels = class_index(names, mapping)
    images = listing.images(paths, [labels[name] for name in names])
    fraction = DEFAULT_VAL_FRACTION if val_fraction is None else val_fraction
    train, val = stratified_split(images.targets, fraction, seed=seed)
    if len(val) == 0:
        raise UserError(f"{spec} has one image a class, so none can validate; add images or a val/ folder")
    split = f"stratified split, {fraction:.0%} of each class for validation, seed {seed}"
    return ImageData(
        spec, images.subset(train), images.subset(val), _ordered(labels), split, notes=_empty_notes(listing)
    )


def _two_parts(
    spec: str,
    parts: list[tuple[Listing, list[str], str, str]],
    mapping: dict[str, int] | None,
    split: str,
) -> ImageData:
    train_names, val_names = (classes_of(*part) for part in parts)
    strangers = sorted(set(val_names) - set(train_names))
    if strangers:
        shown = ", ".join(repr(name) for name in strangers[:5]) + (", ..." if len(strangers) > 5 else "")
        raise UserError(
            f"{parts[1][3]} has {len(strangers)} class(es) that {parts[0][3]} has not: {shown}; "
            "add training images of them or take them out"
        )
    labels = class_index(train_names, mapping)
    sets = [
        listing.images(paths, [labels[name] for name in names])
        for (listing, paths, _, _), names in zip(parts, (train_names, val_names), strict=True)
    ]
    unseen = sorted(set(train_names) - set(val_names))
    notes = [f"no validation images of class {name!r}" for name in unseen]
    return ImageData(spec, sets[0], sets[1], _ordered(labels), split, notes=notes)


def _ordered(labels: Mapping[str, int]) -> list[str]:
    return sorted(labels, key=lambda name: labels[name])


def _empty_notes(listing: Listing) -> list[str]:
    return [f"folder {listing.place / name} is empty" for name in listing.empty_classes]
