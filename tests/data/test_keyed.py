"""The keyed loader for any target: masks, dicts; positions inside an epoch; images that cannot be read."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.conftest import classes, encoded, picture, write_files, write_tar
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from deepvit.data import AugmentConfig, ImageSet, InputSpec, Loaders, Transforms
from deepvit.data.batched.keyed import BatchLoader, Decoded, Skipped
from deepvit.data.batched.plan import TrainPlan
from deepvit.data.sets import UNLABELLED
from deepvit.errors import UserError

STRONG = AugmentConfig(
    randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.4, random_erasing=0.5, mixup=0.8, cutmix=1.0
)


class Masked(ImageSet):
    """Images whose mask is the red channel in steps of 64: what a joint transform does to one it must do to the other."""

    def __init__(self, count: int = 24) -> None:
        self.targets = torch.full((count,), UNLABELLED)

    def open(self, index: int) -> Image.Image:
        return picture(index, (20, 16))

    def target(self, index: int) -> tv_tensors.Mask:
        return tv_tensors.Mask(torch.from_numpy(np.asarray(picture(index, (20, 16)))[..., 0] // 64))

    def where(self, index: int) -> str:
        return str(index)


class MaskedData:
    spec = "masks"
    train = Masked()
    val = Masked(9)

    def account(self) -> list[str]:
        return ["24 masks"]


TYPES = v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64})
JOINT = v2.Compose([v2.ToImage(), v2.RandomCrop(12), v2.RandomHorizontalFlip(), TYPES])
WHOLE = v2.Compose([v2.ToImage(), v2.CenterCrop(12), TYPES])


def masked(**options: Any) -> Loaders:
    return Loaders(MaskedData(), batch_size=5, transforms=Transforms(JOINT, WHOLE), progress=False, **options)


def passed(loader: Any) -> list[torch.Tensor]:
    return [tensor for batch in loader for tensor in batch]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_masks_follow_their_images_through_joint_transforms() -> None:
    loaders = masked(workers=0)
    assert (loaders.soft_targets, loaders.label_smoothing, loaders.mixing) == (False, 0.0, None)
    assert loaders.account() == ["24 masks"]
    loaders.setup("fit")
    for loader, batches in ((loaders.train_dataloader(), 4), (loaders.val_dataloader(), 2)):
        assert len(loader) == batches
        for images, masks in loader:
            assert images.shape[1:] == (3, 12, 12)
            assert masks.shape == (len(images), 12, 12)
            assert (images.dtype, masks.dtype) == (torch.float32, torch.int64)
            assert torch.equal(masks, images[:, 0].long() // 64)
    first, second = (passed(loaders.train_dataloader()) for _ in range(2))
    assert same(first, second)  # a new loader begins at epoch 0
    assert same(passed(loaders.val_loader_for(9)), passed(loaders.val_dataloader()))


def test_targets_may_be_dicts() -> None:
    def transform(image: Any, mask: Any) -> tuple[torch.Tensor, Any]:
        image, mask = JOINT(image, mask)
        return image, {"mask": mask, "size": (1, 2.0), "name": "x"}

    loader = BatchLoader(Decoded(Masked(), transform, seed=0), TrainPlan(24, 6, seed=0))
    _, targets = next(iter(loader))
    assert targets["mask"].shape == (6, 12, 12)
    assert targets["size"][0].tolist() == [1] * 6
    assert targets["name"] == ["x"] * 6


def test_own_collation() -> None:
    _, masks = next(iter(masked(workers=0, collate=list).train_dataloader()))
    assert isinstance(masks, list)
    assert masks[0].shape == (12, 12)


def paste(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch transform of images and masks that draws."""
    order, left = torch.randperm(len(images)), int(torch.randint(6, ()))
    images, masks = images.clone(), masks.clone()
    images[..., left : left + 6], masks[..., left : left + 6] = images[order][..., :6], masks[order][..., :6]
    return images, masks


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [1, 3])
def test_a_position_gives_the_batches_of_an_unbroken_epoch_with_masks(workers: int, at: int) -> None:
    loader = masked(workers=0, batch_transform=paste).train_dataloader()
    loader.set_position(2)
    whole = passed(loader)
    loaders = masked(workers=workers, batch_transform=paste)
    other = loaders.train_dataloader()
    other.set_position(2, at)
    torch.manual_seed(9)
    assert same(whole[2 * at :], passed(other))
    assert (other.epoch, other.state_dict()) == (3, {"epoch": 3, "given": 0})
    loaders.teardown()


@pytest.mark.parametrize("cache", ["ram", "off"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_gives_the_batches_of_an_unbroken_epoch_with_mixing(
    folder: Path, cache: str, workers: int
) -> None:
    def loader() -> Any:
        options: dict[str, Any] = {"cache": cache, "workers": workers, "augment": STRONG, "progress": False}
        return Loaders(str(folder), input=InputSpec(12), batch_size=4, **options).train_dataloader()

    one = loader()
    epochs = [passed(one) for _ in range(3)]
    for epoch, batch in ((0, 5), (2, 0), (1, 4)):
        other = loader()
        other.set_position(epoch, batch)
        other.set_epoch(epoch)  # as Lightning does
        assert same(epochs[epoch][2 * batch :], passed(other))
        other.close()
    # stopped in the middle with workers under way, and gone on by the state alone
    one.set_position(1)
    iterator = iter(one)
    for _ in range(3):
        next(iterator)
    state = pickle.loads(pickle.dumps(one.state_dict()))
    iterator.close()
    assert state == {"epoch": 1, "given": 3}
    other = loader()
    other.load_state_dict(state)
    assert same(epochs[1][6:], passed(other))
    assert same(epochs[2], passed(other))  # and then the next epoch, whole
    for each in (one, other):
        each.close()


def test_a_position_at_the_end_is_the_next_epochs_start(folder: Path) -> None:
    loader = Loaders(str(folder), input=InputSpec(12), batch_size=4, progress=False).train_dataloader()
    loader.set_position(1, len(loader))
    assert loader.state_dict() == {"epoch": 2, "given": 0}
    loader.set_position(0, 4)
    loader.set_epoch(3)  # another epoch than the present one
    assert loader.state_dict() == {"epoch": 3, "given": 0}
    with pytest.raises(ValueError, match="must not be negative"):
        loader.set_position(-1)


def test_a_position_in_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    for name in ("train-0", "train-1", "val-0"):
        members: dict[str, bytes] = {}
        for i in range(10):
            members |= {f"{i}.png": encoded(i), f"{i}.cls": str(i % 3).encode()}
        write_tar(tmp_path / f"{name}.tar", members)
    options: dict[str, Any] = {"workers": 2, "augment": STRONG, "progress": False}
    loader = Loaders(f"wds/{tmp_path}", input=InputSpec(12), batch_size=4, **options).train_dataloader()
    loader.set_position(1)
    whole = passed(loader)
    loader.set_position(1, 3)
    assert same(whole[6:], passed(loader))
    assert loader.state_dict() == {"epoch": 2, "given": 0}


@pytest.fixture
def holed(tmp_path: Path) -> Path:
    """30 training images, 1 of them broken; 12 to validate, 1 broken."""
    write_files(tmp_path / "set", classes(10, "train/") | classes(4, "val/"))
    for name in ("train/bee/03.png", "val/cat/02.png"):
        (tmp_path / "set" / name).write_bytes(encoded(1)[:60])
    return tmp_path / "set"


@pytest.mark.parametrize("cache", ["ram", "off"])
@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_are_counted_and_named_once(holed: Path, cache: str, workers: int) -> None:
    options: dict[str, Any] = {"cache": cache, "workers": workers, "augment": STRONG, "progress": False}
    loaders = Loaders(str(holed), input=InputSpec(12), batch_size=6, unreadable="skip", **options)
    assert any("skipped and counted" in line for line in loaders.account())
    loaders.setup("fit")
    train, val = loaders.train_dataloader(), loaders.val_dataloader()
    for _ in range(3):
        batches = list(train)
        assert [len(images) for images, _ in batches] == [6] * len(
            train
        )  # full and even, as mixing in pairs needs
    assert len(train.skipped) == 1
    assert "train/bee/03.png cannot be read" in train.skipped[0]
    assert sum(len(images) for images, _ in val) == 11
    assert len(val.skipped) == 1
    assert "val/cat/02.png" in val.skipped[0]
    # and a run that goes on inside an epoch sees the same stand-in
    train.set_position(1)
    whole = passed(train)
    train.set_position(1, 2)
    assert same(whole[4:], passed(train))
    loaders.teardown()


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_the_default_stops_at_the_first(holed: Path, cache: str) -> None:
    loaders = Loaders(str(holed), input=InputSpec(12), batch_size=6, cache=cache, workers=0, progress=False)
    for loader in (loaders.train_dataloader, loaders.val_dataloader):
        with pytest.raises(UserError, match=r"0[23]\.png cannot be read"):
            list(loader())


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_too_many_stop_even_with_skip(holed: Path, cache: str) -> None:
    for i in range(4, 7):
        (holed / "train" / "bee" / f"{i:02}.png").write_bytes(b"")
    options: dict[str, Any] = {"cache": cache, "workers": 0, "unreadable": "skip", "progress": False}
    loaders = Loaders(str(holed), input=InputSpec(12), batch_size=6, **options)
    with pytest.raises(
        UserError,
        match=r"2 of 30 images cannot be read, more than the 5% .* the last: image ",
    ):
        list(loaders.train_dataloader())


def test_counting() -> None:
    skipped = Skipped(1000, allowed=True)
    skipped.add(*(f"image {i}" for i in range(50)), "image 7")
    assert len(skipped.complaints) == 50
    with pytest.raises(UserError, match="51 of 1,000 images"):
        skipped.add("image 50")
    with pytest.raises(UserError, match="image 1"):
        Skipped(1000, allowed=False).add("image 1")


def test_shards_lose_no_image_silently(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    members: dict[str, bytes] = {}
    for i in range(24):
        members |= {f"{i:02}.png": encoded(i) if i not in (5, 23) else b"broken", f"{i:02}.cls": b"0"}
    write_tar(tmp_path / "train-0.tar", members)
    write_tar(tmp_path / "val-0.tar", members)
    options: dict[str, Any] = {"workers": 1, "progress": False, "batch_size": 4}
    for part in ("train", "val"):
        loaders = Loaders(f"wds/{tmp_path}", input=InputSpec(12), **options)
        with pytest.raises(
            UserError, match=r"image (05|23) in .*-0\.tar cannot be read \(in no image format"
        ):
            list(loaders.train_dataloader() if part == "train" else loaders.val_dataloader())
    loaders = Loaders(f"wds/{tmp_path}", input=InputSpec(12), unreadable="skip", **options)
    loader = loaders.val_dataloader()
    loader._skipped.share = 0.5
    assert sum(len(images) for images, _ in loader) == 22
    assert len(loader.skipped) == 2
