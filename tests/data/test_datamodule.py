from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from data.conftest import encoded, write_files

from deepvit.data import AugmentConfig, InputSpec, Transforms, open_data
from deepvit.data.batched.augment import BatchAugment
from deepvit.data.batched.keyed import Batch, Key
from deepvit.data.batched.memory import StoredTrain
from deepvit.errors import UserError
from deepvit.training import ImageDataModule

STRONG = AugmentConfig(
    randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.4, random_erasing=0.5, mixup=0.8, cutmix=1.0
)


def module(data: object, **options: object) -> ImageDataModule:
    defaults: dict[str, object] = {"batch_size": 4, "progress": False}
    names = {
        "img_size": "size",
        "mean": "mean",
        "std": "std",
        "interpolation": "interpolation",
        "crop_pct": "crop_pct",
    }
    spec = {names[name]: options.pop(name) for name in list(options) if name in names}
    defaults["input"] = InputSpec(**{"size": 12, **spec})  # type: ignore[arg-type]
    return ImageDataModule(data, **(defaults | options))  # type: ignore[arg-type]


def epochs(loader: object, numbers: list[int]) -> list[list[torch.Tensor]]:
    """[images and targets of all batches] of each epoch."""
    result = []
    for number in numbers:
        loader.set_epoch(number)  # type: ignore[attr-defined]
        result.append([tensor for batch in loader for tensor in batch])  # type: ignore[attr-defined]
    return result


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_batches_of_the_cached_path(folder: Path) -> None:
    data = module(str(folder))
    assert data.stored_size("train") == (12, 12)
    assert (data.num_classes, data.class_names) == (3, ["ant", "bee", "cat"])
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 6
    images, labels = batches[0]
    assert images.shape == (4, 3, 12, 12)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert sum(label.bincount(minlength=3) for _, label in batches).tolist() == [8, 8, 8]


def test_validation_is_every_image_once_and_exact(folder: Path) -> None:
    data = module(str(folder), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    batches = list(data.val_dataloader())
    assert [len(images) for images, _ in batches] == [4, 4, 1]
    images = torch.cat([images for images, _ in batches])
    for i, image in enumerate(images):
        raw = torch.from_numpy(np.array(data.data.val.image(i))).permute(2, 0, 1) / 255
        expected = (raw - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[
            :, None, None
        ]
        torch.testing.assert_close(image, expected)


@pytest.mark.parametrize("cache", ["ram", "off"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_only(folder: Path, cache: str, workers: int) -> None:
    def loader(seed: int = 0) -> object:
        return module(str(folder), augment=STRONG, cache=cache, workers=workers, seed=seed).train_dataloader()

    first = epochs(loader(), [0, 1, 2])
    torch.manual_seed(99)
    assert same(first[2], epochs(loader(), [2])[0])  # a resumed run
    assert not same(first[0], first[1])
    assert not same(first[0], epochs(loader(seed=1), [0])[0])


def test_worker_count_changes_nothing(folder: Path) -> None:
    runs = [
        epochs(module(str(folder), augment=STRONG, cache="off", workers=n).train_dataloader(), [3])[0]
        for n in (0, 1)
    ]
    assert same(*runs)


def test_loaders_leave_the_global_random_state_alone(folder: Path) -> None:
    for cache, workers in (("ram", 0), ("off", 0), ("off", 1)):
        loader = module(str(folder), augment=STRONG, cache=cache, workers=workers).train_dataloader()
        torch.manual_seed(1)
        np.random.seed(1)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        list(loader)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == np.random.get_state()[1].tolist()


def test_without_set_epoch_each_pass_is_the_next_epoch(folder: Path) -> None:
    loader = module(str(folder)).train_dataloader()
    passes = [[tensor for batch in loader for tensor in batch] for _ in range(2)]
    assert same(passes[1], epochs(module(str(folder)).train_dataloader(), [1])[0])


def test_state_continues_inside_an_epoch(folder: Path) -> None:
    loader = module(str(folder), augment=STRONG).train_dataloader()
    whole = epochs(loader, [2])[0]
    loader.set_epoch(2)
    iterator = iter(loader)
    for _ in range(2):
        next(iterator)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    other = module(str(folder), augment=STRONG).train_dataloader()
    other.load_state_dict(state)
    other.set_epoch(2)  # as Lightning does
    assert same(whole[4:], [tensor for batch in other for tensor in batch])


def test_mixing_gives_soft_targets(folder: Path) -> None:
    data = module(str(folder), augment=AugmentConfig(mixup=0.8, cutmix=1.0, label_smoothing=0.1))
    assert data.soft_targets
    assert data.label_smoothing == 0.0
    _, targets = next(iter(data.train_dataloader()))
    assert targets.shape == (4, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    plain = module(str(folder))
    assert not plain.soft_targets
    assert plain.label_smoothing == 0.1


def test_batch_transform_replaces_mixing(folder: Path) -> None:
    def patches(images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images * 0, labels[:, None].expand(-1, 9)

    images, targets = next(iter(module(str(folder), batch_transform=patches).train_dataloader()))
    assert targets.shape == (4, 9)
    assert images.abs().max() == 0


def test_limits_keep_the_classes_in_proportion(folder: Path) -> None:
    data = module(str(folder), max_train_images=12, max_val_images=3)
    assert data.train_set.targets.bincount().tolist() == [4, 4, 4]
    assert data.val_set.targets.tolist() == [0, 1, 2]


def test_fewer_images_than_a_batch(folder: Path) -> None:
    data = module(str(folder), batch_size=64, max_train_images=7)
    assert [len(images) for images, _ in data.train_dataloader()] == [7]
    mixed = module(str(folder), batch_size=64, max_train_images=7, augment=AugmentConfig(mixup=0.2))
    assert [len(images) for images, _ in mixed.train_dataloader()] == [6]


def test_large_images_are_decoded_every_epoch(tmp_path: Path) -> None:
    members = {
        f"{s}/{c}/{i}.png": encoded(i, (130, 100)) for s in ("train", "val") for c in "ab" for i in range(4)
    }
    write_files(tmp_path, members)
    data = module(str(tmp_path), img_size=32, workers=0)
    assert data.stored_size("train") is None
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert module(str(tmp_path), img_size=32, cache="ram").stored_size("train") == (32, 32)


def test_small_images_for_a_large_network_are_scaled_up_in_batches(folder: Path) -> None:
    data = module(str(folder), img_size=128, crop_pct=0.9)
    assert data.stored_size("train") == (12, 12)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 128, 128)
    images = next(iter(data.val_dataloader()))[0]
    decoded = next(
        iter(module(str(folder), img_size=128, crop_pct=0.9, cache="off", workers=0).val_dataloader())
    )[0]
    assert (images - decoded).abs().mean() < 0.02  # PIL rounds and cuts at 0 and 255


def test_unreadable_images_stop_training_and_are_skipped_in_diagnosis(folder: Path) -> None:
    (folder / "val" / "bee" / "broken.png").write_bytes(b"nothing")
    (folder / "train" / "bee" / "broken.png").write_bytes(b"nothing")
    loader = module(str(folder), cache="off").val_loader_for(10)
    assert sum(len(images) for images, _ in loader) == 9
    assert len(loader.skipped) == 1
    assert "broken.png" in loader.skipped[0]
    for cache in ("ram", "off"):
        data = module(str(folder), cache=cache, unreadable="skip", workers=1)
        loader = data.val_dataloader()
        assert sum(len(images) for images, _ in loader) == 9
        assert len(loader.skipped) == 1
        data.teardown()
        with pytest.raises(UserError, match=r"val/bee/broken\.png cannot be read"):
            list(module(str(folder), cache=cache, workers=0).val_dataloader())
    for options in ({"cache": "ram"}, {"cache": "off", "workers": 0}, {"cache": "off", "workers": 1}):
        with pytest.raises(UserError, match=r"broken\.png cannot be read") as caught:
            list(module(str(folder), **options).train_dataloader())
        assert "\n" not in str(caught.value)


def test_diagnosis_subset_is_spread_over_the_classes(folder: Path) -> None:
    loader = module(str(folder)).val_loader_for(3)
    assert torch.cat([labels for _, labels in loader]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"unreadable": "ignore"}, "stop or skip"),
        ({"interpolation": "cubic"}, "bicubic, bilinear"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"cache": "disk"}, "auto, ram or off"),
        ({"max_train_images": 0}, "at least 1"),
        ({"augment": AugmentConfig(hflip=2.0)}, "hflip=2.0"),
        ({"augment": AugmentConfig(crop_padding=2, crop_scale=(0.5, 1.0))}, "exclude each other"),
    ],
)
def test_wrong_options_are_refused(folder: Path, options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        module(str(folder), **options)


def test_odd_batches_are_refused_for_mixing_only_when_training(folder: Path) -> None:
    data = module(str(folder), batch_size=5, augment=AugmentConfig(mixup=0.5))
    data.setup("validate")
    with pytest.raises(UserError, match="must be even"):
        data.setup("fit")


def test_unknown_policies_are_refused(folder: Path) -> None:
    for policy in ("rand-x9", "augmix-m3", "nonsense"):
        for cache in ("ram", "off"):
            with pytest.raises(UserError, match="randaugment="):
                module(str(folder), augment=AugmentConfig(randaugment=policy), cache=cache).train_dataloader()


class Recorder(lightning.LightningModule):
    """Notes what it sees, so that two runs can be compared; stops dead after ``die_after`` batches."""

    def __init__(self, die_after: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []
        self.validated = 0
        self.die_after = die_after

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        if len(self.seen) == self.die_after:
            raise RuntimeError("power cut")
        self.seen.append(batch[0].double().sum().item())
        return self.weight * batch[0].mean()

    def on_validation_epoch_start(self) -> None:
        self.validated = 0

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        self.validated += len(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(folder: Path, out: Path, model: Recorder, every: int, checkpoint: Path | None = None) -> None:
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        out, filename="{step}", every_n_train_steps=every, save_top_k=-1
    )
    trainer = lightning.Trainer(
        max_epochs=4,
        default_root_dir=out,
        accelerator="cpu",
        logger=False,
        callbacks=[saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    data = module(str(folder), augment=STRONG)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", [6, 8])  # at the end of the first epoch, and in the middle of the second
def test_lightning_resumes_with_the_batches_of_an_unbroken_run(
    folder: Path, tmp_path: Path, saved: int
) -> None:
    whole = Recorder()
    fit(folder, tmp_path / "whole", whole, saved)
    assert len(set(whole.seen)) == 24  # every epoch has its own augmentation
    assert whole.validated == 9
    with pytest.raises(RuntimeError, match="power cut"):
        fit(folder, tmp_path / "part", Recorder(die_after=10), saved)
    rest = Recorder()
    fit(folder, tmp_path / "rest", rest, saved, tmp_path / "part" / f"step={saved}.ckpt")
    assert rest.seen == whole.seen[saved:]


def test_every_part_of_the_key_changes_the_augmentation(folder: Path) -> None:
    """Two epochs differ in order anyway, so this looks at one and the same list of images."""
    numbers = torch.arange(0, 24, 3)
    unmixed = replace(STRONG, mixup=0.0, cutmix=0.0)

    def batches(cache: str, augment: AugmentConfig) -> list[Batch]:
        source = module(str(folder), augment=augment, cache=cache, workers=0).train_dataloader().source
        return [source.batch(Key(epoch, batch, numbers)) for epoch, batch in ((0, 0), (0, 0), (1, 0), (0, 1))]

    for cache in ("ram", "off"):
        first, again, epoch, batch = (result.images for result in batches(cache, unmixed))
        assert torch.equal(first, again)
        assert not torch.equal(first, epoch)
        # decoded images are seeded one by one, whatever batch they are in
        assert torch.equal(first, batch) == (cache == "off")
        first, again, epoch, batch = (result.targets for result in batches(cache, STRONG))
        assert torch.equal(first, again)
        assert not torch.equal(first, epoch)
        assert not torch.equal(first, batch)


def test_processes_augment_differently(folder: Path) -> None:
    data = module(str(folder), augment=STRONG)
    stored = data._store("train")
    assert stored is not None
    augment = BatchAugment(data.augment, data.input.hw, data.input.mean, data.input.std)
    first, second = (
        StoredTrain(stored, augment, 0, rank).batch(Key(0, 0, torch.arange(8))) for rank in (0, 1)
    )
    assert not torch.equal(first.images, second.images)


def test_opened_data_can_be_given(folder: Path) -> None:
    assert module(open_data(str(folder))).num_classes == 3


def test_the_path_in_memory_is_said(folder: Path) -> None:
    plain = AugmentConfig(randaugment="")
    stored = "24 training images are kept in memory at 12×12 pixels and augmented a batch at a time"
    assert module(str(folder), augment=plain).account() == [stored]
    assert module(str(folder), augment=STRONG).account() == [
        f"{stored}; there RandAugment samples bilinearly and blurs by a true Gaussian"
    ]
    assert module(str(folder), augment=STRONG, cache="off").account() == []
    skipping = module(str(folder), cache="off", unreadable="skip").account()
    assert skipping == ["images that cannot be read are skipped and counted, up to 5% of them"]
    (folder / "train" / "dodo").mkdir()
    assert module(str(folder), augment=plain).account() == ["1 folder holds no images: train/dodo", stored]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, "0×0"),
        ({"size": (8, -1)}, "8×-1"),
        ({"std": (0.5, 0.0, 0.5)}, "above 0"),
        ({"mean": (0.5,)}, "as many numbers"),
        ({"interpolation": "cubic"}, "bicubic, bilinear"),
        ({"crop_pct": 0.0}, "crop_pct=0.0"),
    ],
)
def test_inputs_that_cannot_be_meant_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        InputSpec(**options)  # type: ignore[arg-type]


def test_inputs() -> None:
    assert InputSpec(96).hw == (96, 96)
    assert (InputSpec(96).crop, InputSpec(224).crop, InputSpec((97, 8)).crop) == (1.0, 0.9, 0.9)
    assert InputSpec(224, crop_pct=0.5).crop == 0.5
    assert InputSpec(8, mean=[0, 0, 0]).mean == (0.0, 0.0, 0.0)  # type: ignore[arg-type]


def test_transforms_of_its_own_exclude_augmentation(folder: Path) -> None:
    transforms = Transforms(lambda x, y: (x, y), lambda x, y: (x, y))
    for options in ({"augment": AugmentConfig()}, {"cache": "ram"}):
        with pytest.raises(UserError, match="take neither augment nor cache"):
            module(str(folder), transforms=transforms, **options)
