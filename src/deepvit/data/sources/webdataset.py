"""WebDataset shards by timm's reader: ``wds/PLACE``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepvit.data.archives import whole_tar
from deepvit.data.dataset import ImageData
from deepvit.data.options import ClassCountOption, ClassMapOption, load_class_map
from deepvit.data.shards import StreamImages, quiet_reader
from deepvit.data.sources.foreign import VAL_SPLITS
from deepvit.data.sources.source import Source
from deepvit.errors import UserError


@dataclass
class ShardOptions(ClassCountOption, ClassMapOption):
    """Options of shards."""


def open_wds(place: str, options: ShardOptions) -> ImageData:
    """Shards; labels are the ``.cls`` members (a class map only names them).

    ``place`` is a folder or an address with timm's ``_info.json``, or a local folder of ``train*.tar`` and
    ``val*.tar`` (or ``test*.tar``) shards, which are counted by reading their indexes.
    """
    spec = f"wds/{place}"
    try:
        importlib.import_module("webdataset")  # timm's reader needs it, and says so less clearly
    except ImportError:
        raise UserError(f"{spec} needs the webdataset library; pip install 'deepvit[wds]'") from None
    class_map, classes = load_class_map(options.class_map), options.num_classes
    if class_map is not None and classes is not None:
        raise UserError(f"--data.num_classes means nothing beside --data.class_map for {spec}; leave it out")
    if classes is not None and classes < 1:
        raise UserError(f"num_classes={classes} must be at least 1")
    info = _wds_info(place)
    if info:
        splits = info["splits"]
        val_name = next((name for name in VAL_SPLITS if name in splits), None)
        if "train" not in splits or val_name is None:
            raise UserError(f"{spec} needs a train and a validation split (it has: {', '.join(splits)})")
        parts = [
            StreamImages(place, name, int(splits[name]["num_samples"]), len(splits[name]["filenames"]))
            for name in ("train", val_name)
        ]
        labels: set[int] = set()
    else:
        parts, labels = _local_shards(place)
    known = len(class_map) if class_map is not None else classes
    if known is not None and labels and max(labels) >= known:
        raise UserError(f"{spec} has label {max(labels)}, more than the {known} classes given")
    if class_map is not None:
        names = sorted(class_map, key=lambda name: class_map[name])
    elif classes is not None or labels:
        names = [str(i) for i in range(classes or max(labels) + 1)]
    else:
        raise UserError(
            f"{spec} does not say how many classes it has; give --data.num_classes N or --data.class_map FILE"
        )
    return ImageData(spec, parts[0], parts[1], names, "the shards' own split")


def _local_shards(place: str) -> tuple[list[StreamImages], set[int]]:
    """The two parts of a folder of shards, and the labels in them."""
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"wds/{place} is not a folder and has no _info.json that can be read; check it")
    parts: list[StreamImages] = []
    labels: set[int] = set()
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
    return parts, labels


def _shard_labels(shard: Path) -> list[int]:
    labels = []
    with whole_tar(shard) as (tar, members):
        for member in members:
            if member.isfile() and member.name.endswith(".cls"):
                content = tar.extractfile(member)
                assert content is not None
                text = content.read(64)
                try:
                    labels.append(int(text))
                except ValueError:
                    raise UserError(
                        f"shard {shard} cannot be read ({member.name} holds no label but {text[:20]!r}); mend or remove it"
                    ) from None
    return labels


def _wds_info(place: str) -> dict[str, Any]:
    from timm.data.readers.reader_wds import _load_info

    if "://" not in place and not any((Path(place) / n).is_file() for n in ("_info.json", "info.json")):
        return {}
    with quiet_reader():
        info = _load_info(place)
    return info if isinstance(info, dict) and "splits" in info else {}


WDS = Source(
    name="wds/",
    forms=(("wds/PLACE", "WebDataset shards in a folder or at an address, by timm's reader"),),
    needs="pip install 'deepvit[wds]'",
    options=ShardOptions,
    open=open_wds,
)
