"""Data sets of the Hugging Face hub, or local folders that its library loads, by timm's reader: ``hfds/NAME``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.data import create_dataset

from deepvit.data.dataset import ImageData
from deepvit.data.options import HeldOutOptions, RootOption
from deepvit.data.sets import DatasetImages
from deepvit.data.sources.foreign import VAL_SPLITS, one_line
from deepvit.data.sources.source import Source
from deepvit.data.split import hold_out
from deepvit.errors import UserError


@dataclass
class HubOptions(HeldOutOptions, RootOption):
    """Options of data sets of the hub."""


def open_hfds(name: str, options: HubOptions) -> ImageData:
    """A Hugging Face data set.

    Image and label columns are the first of those kinds. Without a validation or test split, a stratified
    part of train is held out.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"hfds/{name} needs the datasets library; pip install 'deepvit[hf]'") from None
    spec, cache = f"hfds/{name}", options.root
    with one_line(spec, "check the name and the network"):
        loaded = datasets.load_dataset(name, cache_dir=cache)
    splits = list(loaded)
    if "train" not in splits:
        raise UserError(f"{spec} has no split named 'train' (it has: {', '.join(splits)})")
    features = loaded["train"].features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not images or not labels:
        raise UserError(f"{spec} has no image or no class-label column (columns: {', '.join(features)})")
    names = list(features[labels[0]].names)

    def part(split: str) -> DatasetImages:
        with one_line(spec, "check the name and the network"):
            dataset = create_dataset(spec, root=cache, split=split, input_key=images[0], target_key=labels[0])
        targets = torch.tensor(list(dataset.reader.iter_targets()), dtype=torch.int64)
        return DatasetImages(dataset.reader, targets, f"{spec} ({split})")

    train = part("train")
    val_name = next((split for split in VAL_SPLITS if split in splits), None)
    if val_name is not None:
        for option in ("val_fraction", "split_seed"):
            if getattr(options, option) is not None:
                raise UserError(
                    f"--data.{option} means nothing for {spec}, which has a split {val_name} of its own; leave it out"
                )
        return ImageData(spec, train, part(val_name), names, f"splits train and {val_name}")
    kept, held, split = hold_out(train.targets, options.val_fraction, options.split_seed)
    return ImageData(spec, train.subset(kept), train.subset(held), names, split)


HFDS = Source(
    name="hfds/",
    forms=(
        (
            "hfds/NAME",
            "a data set of the Hugging Face hub, or a local folder that its library loads, by timm's reader",
        ),
    ),
    needs="pip install 'deepvit[hf]'; a network once",
    options=HubOptions,
    open=open_hfds,
)
