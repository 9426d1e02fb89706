"""torchvision's data sets by timm's reader: ``torch/NAME``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset

from deepvit.data.dataset import ImageData
from deepvit.data.images import decode
from deepvit.data.options import RootOption
from deepvit.data.sets import DatasetImages
from deepvit.data.sources.foreign import one_line
from deepvit.data.sources.source import Source

NAMES = (
    "cifar10", "cifar100", "mnist", "kmnist", "qmnist", "fashion_mnist", "places365", "inaturalist", "imagenet",
)  # fmt: skip
NOT_MIRRORED = ("mnist", "kmnist", "qmnist")  # handwriting


def open_torch(name: str, options: RootOption) -> ImageData:
    """A torchvision data set, downloaded when it is not below ``root`` yet (default: ``datasets`` in torch hub's folder)."""
    place = Path(options.root) if options.root is not None else Path(torch.hub.get_dir()) / "datasets"
    near = [] if name.split("/")[-1].lower() in NAMES else difflib.get_close_matches(name.lower(), NAMES, n=2)
    sets = []
    for split in ("train", "val"):
        way_out = f"check the name and the network, or put the files into {place} (--data.root)"
        if near:
            way_out = f"did you mean {' or '.join(f'torch/{each}' for each in near)}?"
        with one_line(f"torch/{name}", way_out):
            dataset = create_dataset(f"torch/{name}", root=str(place), split=split, download=True)
        if hasattr(dataset, "loader"):
            dataset.loader = decode  # torchvision's own would turn 16-bit images white
        sets.append(DatasetImages(dataset, _targets(dataset), f"torch/{name} ({split})"))
    names = getattr(sets[0].dataset, "classes", None)
    names = [str(n) for n in names] if names else [str(i) for i in range(int(sets[0].targets.max()) + 1)]
    mirror = name.split("/")[-1].lower() not in NOT_MIRRORED
    return ImageData(f"torch/{name}", sets[0], sets[1], names, "the data set's own split", mirror)


def _targets(dataset: Any) -> torch.Tensor:
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = getattr(dataset, "_labels", None)
    if targets is None and hasattr(dataset, "index"):  # iNaturalist keeps (class, file) pairs
        targets = [label for label, _ in dataset.index]
    assert targets is not None, f"{type(dataset).__name__} does not list its labels"
    return torch.as_tensor(targets, dtype=torch.int64).reshape(len(dataset), -1)[:, 0].clone()


TORCH = Source(
    name="torch/",
    forms=(
        (
            "torch/NAME",
            "torchvision's cifar10, cifar100, mnist, fashion_mnist, kmnist, qmnist, ... by timm's reader",
        ),
    ),
    needs="a network once",
    options=RootOption,
    open=open_torch,
    known=NAMES,
)
