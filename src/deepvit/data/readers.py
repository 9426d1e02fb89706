"""Data sets that timm's readers open: ``torch/NAME``, ``hfds/NAME`` and ``wds/PLACE``."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import create_dataset

from deepvit.data.images import DatasetImages, ImageSet
from deepvit.data.split import stratified_split
from deepvit.errors import UserError

NOT_MIRRORED = ("mnist", "kmnist", "qmnist")  # handwriting
VAL_SPLITS = ("validation", "val", "valid", "test", "eval")


class Opened(NamedTuple):
    """The fields of ``ImageData`` after its spec."""

    train: ImageSet | StreamImages
    val: ImageSet | StreamImages
    class_names: list[str]
    split: str
    mirror: bool = True


def open_torch(name: str, root: str | Path | None) -> Opened:
    """A torchvision data set by timm's reader, downloaded when it is not below ``root`` yet.

    ``root`` defaults to ``datasets`` in torch hub's cache folder.
    """
    place = Path(root) if root is not None else Path(torch.hub.get_dir()) / "datasets"
    sets = []
    for split in ("train", "val"):
        with _one_line(
            f"torch/{name}", "check the name and the network, or put the files into " + str(place)
        ):
            dataset = create_dataset(f"torch/{name}", root=str(place), split=split, download=True)
        sets.append(DatasetImages(dataset, _targets(dataset), f"torch/{name} ({split})"))
    names = getattr(sets[0].dataset, "classes", None)
    names = [str(n) for n in names] if names else [str(i) for i in range(int(sets[0].targets.max()) + 1)]
    return Opened(
        sets[0], sets[1], names, "the data set's own split", name.split("/")[-1].lower() not in NOT_MIRRORED
    )


def open_hfds(name: str, root: str | Path | None, val_fraction: float, seed: int) -> Opened:
    """A Hugging Face data set by timm's reader: the hub's, or a local folder that ``datasets`` can load.

    Image and label columns are the first of those kinds. Without a validation or test split, a stratified
    part of train is held out.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"hfds/{name} needs the datasets library; pip install 'deepvit[hf]'") from None
    cache = None if root is None else str(root)
    with _one_line(f"hfds/{name}", "check the name and the network"):
        loaded = datasets.load_dataset(name, cache_dir=cache)
    splits = list(loaded)
    if "train" not in splits:
        raise UserError(f"hfds/{name} has no split named 'train' (it has: {', '.join(splits)})")
    features = loaded["train"].features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        raise UserError(f"hfds/{name} has no image or no class-label column (columns: {', '.join(features)})")
    names = list(features[labels[0]].names)

    def part(split: str) -> DatasetImages:
        with _one_line(f"hfds/{name}", "check the name and the network"):
            dataset = create_dataset(
                f"hfds/{name}", root=cache, split=split, input_key=images[0], target_key=labels[0]
            )
        targets = torch.tensor(list(dataset.reader.iter_targets()), dtype=torch.int64)
        return DatasetImages(dataset.reader, targets, f"hfds/{name} ({split})")

    train = part("train")
    val_name = next((split for split in VAL_SPLITS if split in splits), None)
    if val_name is not None:
        return Opened(train, part(val_name), names, f"splits train and {val_name}")
    kept, held = stratified_split(train.targets, val_fraction, seed=seed)
    split = f"stratified split, {val_fraction:.0%} of each class for validation, seed {seed}"
    return Opened(train.subset(kept), train.subset(held), names, split)


class StreamImages:
    """WebDataset shards of one split, read in order by timm's reader; no random access.

    ``shards`` is how many files can be shared among processes.
    """

    def __init__(self, place: str, split: str, count: int, shards: int) -> None:
        self.place, self.split, self.count, self.shards = place, split, count, shards

    def __len__(self) -> int:
        return self.count

    def dataset(self, transform: Any, *, training: bool, batch_size: int, seed: int, epoch: int) -> Any:
        """timm's iterable data set of (transformed image, label) for one epoch."""
        with _quiet_reader(), _one_line(f"wds/{self.place}", "check the shards"):
            dataset = create_dataset(
                "wds/",
                root=self.place,
                split=self.split,
                is_training=training,
                batch_size=batch_size,
                seed=seed,
                num_samples=self.count,
            )
        dataset.transform = transform
        dataset.set_epoch(epoch)
        return dataset


def open_wds(place: str, class_map: Mapping[str, int] | None, num_classes: int | None) -> Opened:
    """WebDataset shards by timm's reader; labels are the ``.cls`` members (``class_map`` only names them).

    ``place`` is a folder or an address with timm's ``_info.json``, or a local folder of ``train*.tar`` and
    ``val*.tar`` (or ``test*.tar``) shards, which are counted by reading their indexes.
    """
    try:
        importlib.import_module("webdataset")  # timm's reader needs it, and says so less clearly
    except ImportError:
        raise UserError(f"wds/{place} needs the webdataset library; pip install 'deepvit[wds]'") from None
    info = _wds_info(place)
    if info:
        splits = info["splits"]
        val_name = next((name for name in VAL_SPLITS if name in splits), None)
        if "train" not in splits or val_name is None:
            raise UserError(f"wds/{place} needs a train and a validation split (it has: {', '.join(splits)})")
        parts = [
            StreamImages(place, name, int(splits[name]["num_samples"]), len(splits[name]["filenames"]))
            for name in ("train", val_name)
        ]
        labels: set[int] = set()
    else:
        folder = Path(place)
        if not folder.is_dir():
            raise UserError(f"wds/{place} is not a folder and has no _info.json that can be read; check it")
        parts, labels = [], set()
        for prefixes in (("train",), VAL_SPLITS):
            shards = next((f for p in prefixes if (f := sorted(folder.glob(f"{p}*.tar")))), None)
            if shards is None:
                raise UserError(f"no shards named {prefixes[0]}*.tar in {place} (and no _info.json)")
            count = 0
            for shard in shards:
                found = _shard_labels(shard)
                count += len(found)
                labels |= set(found)
            split = "::".join(shard.name for shard in shards)
            parts.append(StreamImages(place, f"{split}|{count}", count, len(shards)))
    known = len(class_map) if class_map is not None else num_classes
    if known is not None and labels and max(labels) >= known:
        raise UserError(f"wds/{place} has label {max(labels)}, more than the {known} classes given")
    if class_map is not None:
        names = sorted(class_map, key=lambda name: class_map[name])
    elif num_classes is not None or labels:
        names = [str(i) for i in range(num_classes or max(labels) + 1)]
    else:
        raise UserError(f"wds/{place} does not say how many classes it has; give num_classes or a class map")
    return Opened(parts[0], parts[1], names, "the shards' own split")


def _shard_labels(shard: Path) -> list[int]:
    labels = []
    try:
        with tarfile.open(shard, mode="r:") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".cls"):
                    content = tar.extractfile(member)
                    assert content is not None
                    labels.append(int(content.read()))
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"shard {shard} cannot be read ({error}); mend or remove it") from error
    return labels


def _wds_info(place: str) -> dict[str, Any]:
    from timm.data.readers.reader_wds import _load_info

    if "://" not in place and not any((Path(place) / n).is_file() for n in ("_info.json", "info.json")):
        return {}
    with _quiet_reader():
        info = _load_info(place)
    return info if isinstance(info, dict) and "splits" in info else {}


def _targets(dataset: Any) -> torch.Tensor:
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = getattr(dataset, "_labels", None)
    if targets is None and hasattr(dataset, "index"):  # iNaturalist keeps (class, file) pairs
        targets = [label for label, _ in dataset.index]
    assert targets is not None, f"{type(dataset).__name__} does not list its labels"
    return torch.as_tensor(targets, dtype=torch.int64).reshape(len(dataset), -1)[:, 0].clone()


@contextlib.contextmanager
def _one_line(what: str, way_out: str) -> Iterator[None]:
    """Whatever a foreign loader raises becomes one line that names the data set."""
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            yield
    except UserError:
        raise
    except Exception as error:  # loaders and the hub raise anything, AssertionError included
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{what} could not be opened ({type(error).__name__}: {reason}); {way_out}"
        ) from error


@contextlib.contextmanager
def _quiet_reader() -> Iterator[None]:
    """timm warns when there is no ``_info.json``; for a plain folder of shards that is as expected."""
    logger = logging.getLogger("timm.data.readers.reader_wds")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
