"""timm's readers on local data: torch/, hfds/ and wds/ without a network."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from data.conftest import classes, encoded, write_files, write_tar

from deepvit.data import InputSpec, Loaders, open_data
from deepvit.errors import UserError


def idx(array: np.ndarray) -> bytes:
    """The file format of MNIST."""
    return (
        struct.pack(">BBBB", 0, 0, 8, array.ndim)
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 40), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path


def test_torchvision_sets_by_name(mnist: Path) -> None:
    data = open_data("torch/mnist", root=mnist)
    assert (len(data.train), len(data.val), data.num_classes, data.mirror) == (40, 20, 10, False)
    assert data.class_names[3] == "3 - three"
    assert data.train.targets.tolist() == [i % 10 for i in range(40)]
    module = Loaders(data, input=InputSpec(28), batch_size=8, progress=False)
    images, _ = next(iter(module.train_dataloader()))
    assert images.shape == (8, 3, 28, 28)
    assert module.augment.hflip == 0.0


def test_unknown_torchvision_name_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch/nonsuch could not be opened") as caught:
        open_data("torch/nonsuch", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_hugging_face_folder_with_a_validation_split(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write_files(tmp_path / "set", classes(4, "train/") | classes(2, "test/"))
    data = open_data(f"hfds/{tmp_path / 'set'}", root=tmp_path / "cache")
    assert (len(data.train), len(data.val), data.class_names) == (12, 6, ["ant", "bee", "cat"])
    assert data.split == "splits train and test"
    local = open_data(str(tmp_path / "set"))
    assert data.train.targets.tolist() == local.train.targets.tolist()
    assert data.train.image(3).tobytes() == local.train.image(3).tobytes()


def test_hugging_face_set_without_one_is_split(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=["x", "y"])})
    rows = {"img": [{"bytes": encoded(i), "path": None} for i in range(10)], "kind": [0, 1] * 5}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    data = open_data(f"hfds/{tmp_path / 'set'}", root=tmp_path / "cache")
    assert (len(data.train), len(data.val), data.class_names) == (8, 2, ["x", "y"])
    assert sorted(data.val.targets.tolist()) == [0, 1]


def test_hub_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def no_network(*args: object, **options: object) -> None:
        raise ConnectionError("cannot reach the hub\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(UserError, match=r"hfds/some/set .*ConnectionError: cannot reach the hub\)") as caught:
        open_data("hfds/some/set", root=tmp_path)
    assert "\n" not in str(caught.value)


def shard(path: Path, start: int, count: int) -> Path:
    members: dict[str, bytes] = {}
    for i in range(start, start + count):
        members[f"{i:04}.png"] = encoded(i)
        members[f"{i:04}.cls"] = str(i % 3).encode()
    return write_tar(path, members)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for n in range(3):
        shard(tmp_path / f"train-{n:04}.tar", 10 * n, 10)
    shard(tmp_path / "val-0000.tar", 100, 7)
    return tmp_path


def passes(place: Path, epochs: list[int], workers: int = 2) -> list[list[torch.Tensor]]:
    module = Loaders(f"wds/{place}", input=InputSpec(12), batch_size=4, workers=workers, progress=False)
    loader = module.train_dataloader()
    result = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == 7
        result.append([tensor for batch in batches for tensor in batch])
    return result


def test_webdataset_shards(shards: Path) -> None:
    pytest.importorskip("webdataset")
    data = open_data(f"wds/{shards}")
    assert (len(data.train), len(data.val), data.class_names) == (30, 7, ["0", "1", "2"])
    module = Loaders(data, input=InputSpec(12), batch_size=4, workers=1, progress=False)
    batches = list(module.val_dataloader())
    assert torch.cat([labels for _, labels in batches]).tolist() == [i % 3 for i in range(100, 107)]
    # 7 and 7 images in two shards, batches of 4: workers end on short batches, which are put together again
    shard(shards / "val-0001.tar", 107, 7)
    module = Loaders(f"wds/{shards}", input=InputSpec(12), batch_size=4, workers=2, progress=False)
    loader = module.val_dataloader()
    assert [len(images) for images, _ in loader] == [4, 4, 4, 2]
    assert len(loader) == 4
    with pytest.raises(UserError, match="cannot be sampled"):
        module.val_loader_for(4)


def test_webdataset_epochs_repeat_exactly(shards: Path) -> None:
    pytest.importorskip("webdataset")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = passes(shards, [0, 1])
    assert torch.equal(state, torch.get_rng_state())
    again = passes(shards, [1])
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[0], strict=True))
    assert not torch.equal(first[0][0], first[1][0])


def test_webdataset_info_file_and_class_count(tmp_path: Path, shards: Path) -> None:
    pytest.importorskip("webdataset")
    (shards / "_info.json").write_text(
        json.dumps(
            {
                "splits": {
                    "train": {
                        "name": "train",
                        "num_samples": 30,
                        "filenames": [f"train-{n:04}.tar" for n in range(3)],
                        "shard_lengths": [10, 10, 10],
                    },
                    "validation": {
                        "name": "validation",
                        "num_samples": 7,
                        "filenames": ["val-0000.tar"],
                        "shard_lengths": [7],
                    },
                }
            }
        )
    )
    with pytest.raises(UserError, match="how many classes"):
        open_data(f"wds/{shards}")
    (shards / "_info.json").rename(shards / "_info.txt")
    with pytest.raises(UserError, match="label 2"):
        open_data(f"wds/{shards}", num_classes=2)
    (shards / "_info.txt").rename(shards / "_info.json")
    data = open_data(f"wds/{shards}", num_classes=5)
    assert (len(data.train), len(data.val), data.num_classes) == (30, 7, 5)
    module = Loaders(data, input=InputSpec(12), batch_size=7, workers=1, progress=False)
    assert sum(len(images) for images, _ in module.val_dataloader()) == 7


def test_webdataset_mistakes_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(UserError, match="not a folder"):
        open_data(f"wds/{tmp_path / 'none'}")
    with pytest.raises(UserError, match=r"no shards named train\*\.tar"):
        open_data(f"wds/{tmp_path}")
    (tmp_path / "train-0.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"train-0\.tar is not a readable uncompressed tar"):
        open_data(f"wds/{tmp_path}")
