"""Joint transforms: image and mask stay together, the cut keeps its rule, batches follow from the key alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from masks.made import COLOURS, blobs, pairs, save
from PIL import Image

from deepvit.data import InputSpec, Loaders
from deepvit.data.batched.plan import SizedPlan
from deepvit.errors import UserError
from deepvit.masks import SceneAugment, mask_transforms, open_masks
from deepvit.masks.transforms import Cut
from deepvit.tasks.segmentation.predicting import seen

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def nearest(picture: torch.Tensor) -> np.ndarray:
    """The class whose colour a pixel is nearest to, [h, w], -1 for one between two."""
    pixels = (picture * 255).permute(1, 2, 0).numpy()
    gaps = np.abs(pixels[:, :, None] - COLOURS[None, None].astype(float)).sum(-1)
    return np.where(np.sort(gaps, -1)[..., 0] < 60, gaps.argmin(-1), -1)


def agreement(picture: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of pixels whose colour is their class's, where both are sure."""
    shown, classes = nearest(picture), mask.numpy()
    sure = (classes != 255) & (shown >= 0)
    assert sure.mean() > 0.2
    return float((shown == classes)[sure].mean())


@pytest.mark.parametrize(
    "augment",
    [
        SceneAugment(scale=(1.0, 1.0), hflip=0.0, photometric=0.0),
        SceneAugment(scale=(1.0, 1.0), hflip=1.0, photometric=0.0),
        SceneAugment(scale=(0.5, 0.5), hflip=0.0, photometric=0.0),
        SceneAugment(scale=(1.37, 1.37), hflip=1.0, photometric=0.0),
        SceneAugment(scale=(0.7, 2.0), hflip=0.5, photometric=0.0),
        SceneAugment(short_side=41, scale=(1.0, 2.0), photometric=0.0),
        SceneAugment(crop_size=19, photometric=0.0, max_share=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest"])
def test_a_mask_stays_with_its_image(augment: SceneAugment, interpolation: str) -> None:
    spec = InputSpec((40, 56), interpolation=interpolation, **PLAIN)
    transforms = mask_transforms(augment, spec, 255)
    torch.manual_seed(0)
    for seed in range(4):
        mask = np.kron(blobs(seed, (13, 17), 6), np.ones((4, 4), dtype=np.uint8))
        image = Image.fromarray(COLOURS[mask])
        for transform in (transforms.train, transforms.evaluate, transforms.look):
            assert transform is not None
            picture, classes = transform(image, torch.from_numpy(mask))
            assert picture.dtype == torch.float32
            assert classes.dtype == torch.int64
            assert picture.shape[1:] == classes.shape
            # one pixel off at each border of patches of 16 pixels would leave 0.88
            assert agreement(picture, classes) > 0.97
            assert set(classes.unique().tolist()) <= {*range(6), 255}


def test_what_is_drawn_has_the_cuts_size_and_evaluation_its_own() -> None:
    transforms = mask_transforms(SceneAugment(), InputSpec((40, 56), **PLAIN), 255)
    mask = torch.from_numpy(blobs(0, (24, 33)))
    image = Image.fromarray(COLOURS[mask.numpy()])
    assert transforms.train(image, mask)[0].shape == (3, 40, 56)
    assert transforms.look is not None
    assert transforms.look(image, mask)[0].shape == (3, 40, 56)
    picture, classes = transforms.evaluate(image, mask)
    assert torch.equal(classes, mask.long())
    assert torch.equal(
        (picture * 255).round().to(torch.uint8).permute(1, 2, 0), torch.from_numpy(COLOURS[mask])
    )


def test_what_is_filled_up_is_void_and_of_the_mean_colour() -> None:
    spec = InputSpec(40, mean=(0.2, 0.4, 0.6), std=(0.5, 0.5, 0.5))
    augment = SceneAugment(scale=(1.0, 1.0), hflip=0.0, photometric=0.0)
    mask = torch.from_numpy(blobs(0, (24, 33)))
    picture, classes = mask_transforms(augment, spec, 255).train(Image.fromarray(COLOURS[mask.numpy()]), mask)
    assert torch.equal(classes[:24, :33], mask.long())
    assert (classes[24:] == 255).all()
    assert (classes[:, 33:] == 255).all()
    assert picture[:, 24:].abs().max() < 0.005  # the mean's nearest of 256 values


def test_whole_numbers_above_255_survive_scaling() -> None:
    mask = torch.tensor([[300, 65535], [2, 70]], dtype=torch.int32)
    transform = mask_transforms(SceneAugment(short_side=6), InputSpec(6, **PLAIN), 65535).evaluate
    _, classes = transform(Image.new("RGB", (2, 2)), mask)
    assert torch.equal(classes, mask.long().repeat_interleave(3, 0).repeat_interleave(3, 1))


def test_a_cut_holds_at_most_the_share_of_one_class() -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 32:] = 1
    image = Image.fromarray(COLOURS[mask])

    def over(max_share: float) -> int:
        augment = SceneAugment(
            crop_size=24, scale=(1.0, 1.0), hflip=0.0, photometric=0.0, max_share=max_share
        )
        transform = mask_transforms(augment, InputSpec(24, **PLAIN), 255).train
        torch.manual_seed(1)
        cuts = [transform(image, torch.from_numpy(mask))[1] for _ in range(60)]
        shares = [int(cut.flatten().bincount().max()) / cut.numel() for cut in cuts]
        return sum(share > 0.75 for share in shares)

    assert over(1.0) > 30  # two of three places
    assert over(0.75) <= 5  # ten places fail once in fifty cuts


def test_void_does_not_count_for_the_share_and_no_cut_is_void_alone() -> None:
    cut = Cut((8, 8), 0.75, 255, (0.5, 0.5, 0.5))
    half = torch.full((8, 8), 255, dtype=torch.uint8)
    half[0, :4], half[1, :4] = 3, 4
    assert cut.share(half) == 0.5
    assert cut.share(torch.full((8, 8), 255, dtype=torch.uint8)) == 2.0
    mask = torch.full((64, 64), 255, dtype=torch.uint8)
    mask[:, :20] = 2
    augment = SceneAugment(crop_size=16, scale=(1.0, 1.0))
    transform = mask_transforms(augment, InputSpec(16, **PLAIN), 255).train
    torch.manual_seed(0)
    empty = sum(bool((transform(Image.new("RGB", (64, 64)), mask)[1] == 255).all()) for _ in range(100))
    assert empty <= 3  # 0.42 of all places are void alone, and ten are tried


def test_colours_change_the_image_alone() -> None:
    mask = torch.from_numpy(blobs(0))
    image = Image.fromarray(COLOURS[mask.numpy()])
    still = SceneAugment(scale=(1.0, 1.0), hflip=0.0, photometric=0.0)
    moved = SceneAugment(scale=(1.0, 1.0), hflip=0.0, photometric=0.5)
    spec = InputSpec((24, 32), **PLAIN)
    torch.manual_seed(3)
    plain, changed = (mask_transforms(a, spec, 255).train(image, mask) for a in (still, moved))
    assert torch.equal(plain[1], changed[1])
    assert (plain[0] - changed[0]).abs().max() > 0.02


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop_size": 0}, "crop_size=0 must be at least 1 pixel"),
        ({"scale": (2.0, 0.5)}, "two rising positive numbers"),
        ({"max_share": 0.0}, r"max_share=0.0 must lie in \(0, 1\]"),
        ({"hflip": 1.5}, "hflip=1.5 must be between 0 and 1"),
        ({"photometric": -1.0}, "photometric=-1.0 must be between"),
    ],
)
def test_options_out_of_range(options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        SceneAugment(**options)


# -- batches -----------------------------------------------------------------------------------------------------------


def loaders(data: object, **options: object) -> Loaders:
    spec = InputSpec((16, 24))
    return Loaders(
        data,
        input=spec,
        transforms=data.transforms(SceneAugment(), spec),
        batch_size=3,
        progress=False,
        **options,
    )


def first_epochs(loader: object, epochs: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [batch for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("source", ["folder", "digit-scenes"])
def test_batches_are_a_function_of_seed_epoch_and_index(source: str, tmp_path: Path) -> None:
    data = (
        open_masks(str(pairs(tmp_path, {"train": 9, "val": 3})))
        if source == "folder"
        else open_masks(source, scenes=9, scene_size=28)
    )
    here = loaders(data, workers=0, seed=5)
    expected = first_epochs(here.train_dataloader(), 2)
    assert not torch.equal(expected[0][0], expected[3][0])
    module = loaders(data, workers=2, seed=5)
    try:
        for got, want in zip(first_epochs(module.train_dataloader(), 2), expected, strict=True):
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])
    finally:
        module.teardown()
    resumed = loaders(data, workers=0, seed=5).train_dataloader()
    resumed.set_position(1, 1)
    for got, want in zip(resumed, expected[4:], strict=True):
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    other = next(iter(loaders(data, workers=0, seed=6).train_dataloader()))
    assert not torch.equal(other[0], expected[0][0])


def test_training_draws_the_scenes_of_its_epoch() -> None:
    data = open_masks("digit-scenes", scenes=4, scene_size=28)
    spec = InputSpec(28, **PLAIN)
    loader = Loaders(
        data, input=spec, transforms=data.transforms(SceneAugment(), spec), batch_size=4, seed=9, workers=0
    ).train_dataloader()
    for epoch in range(2):
        numbers = loader.plan.epoch(epoch)[0].tolist()
        images, masks = next(iter(loader))
        drawn = data.train.of_epoch(9, epoch)
        for place, number in enumerate(numbers):
            assert torch.equal(masks[place], drawn.target(number).long())
            picture = torch.from_numpy(np.array(drawn.image(number))).permute(2, 0, 1) / 255.0
            assert torch.equal(images[place], picture)
        loader.set_position(epoch + 1)


def test_evaluation_groups_images_of_one_size(tmp_path: Path) -> None:
    root = pairs(tmp_path, {"train": 4})
    sizes = [(24, 32), (20, 20), (24, 32), (32, 24), (20, 20), (24, 32), (24, 32)]
    for i, size in enumerate(sizes):
        mask = blobs(i, size)
        save(root / "images" / "val" / f"{i}.png", COLOURS[mask])
        save(root / "masks" / "val" / f"{i}.png", mask)
    data = open_masks(str(root))
    for batch_size in (1, 2, 8):
        loader = loaders(data, workers=0, eval_batch_size=batch_size)
        seen = [mask for _, masks in loader.val_dataloader() for mask in masks]
        assert sorted(tuple(mask.shape) for mask in seen) == sorted(sizes)
        total = sum(torch.bincount(mask.flatten(), minlength=4) for mask in seen)
        truth = sum(torch.bincount(data.val.target(i).flatten().long(), minlength=4) for i in range(7))
        assert torch.equal(total, truth)
    batches = [images.shape for images, _ in loaders(data, workers=0, eval_batch_size=3).val_dataloader()]
    assert [tuple(shape) for shape in batches] == [
        (3, 3, 24, 32), (1, 3, 24, 32), (2, 3, 20, 20), (1, 3, 32, 24),
    ]  # fmt: skip
    images, masks = next(iter(loaders(data, workers=0).val_loader_for(7, batch_size=7)))
    assert images.shape == (7, 3, 16, 24)
    assert masks.shape == (7, 16, 24)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("sizes", ["aaaaaaa", "abcdefg", "aabbbab", "aaaab"])
def test_processes_have_as_many_batches_and_every_image_once(sizes: str, batch_size: int, world: int) -> None:
    plans = [SizedPlan(sizes, batch_size, rank=rank, world=world) for rank in range(world)]
    assert len({len(plan.epoch(0)) for plan in plans}) == 1
    assert {len(plan.epoch(0)) for plan in plans} == {plans[0].batches}
    batches = [batch.tolist() for plan in plans for batch in plan.epoch(0)]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    numbers = sorted(number for batch in batches for number in batch)
    assert numbers == list(range(len(sizes) + plans[0].repeated))
    # repetitions only where no splitting gives every process as many batches
    fewest = sum(-(-sizes.count(size) // batch_size) for size in set(sizes))
    assert (plans[0].repeated == 0) == (len(sizes) // world * world >= fewest)
    assert plans[0].repeated < world
    assert all(len({sizes[n] for n in batch if n < len(sizes)}) <= 1 for batch in batches)
    with pytest.raises(UserError, match="too few for 9 processes"):
        SizedPlan(sizes, batch_size, world=9)


def test_what_fills_up_a_process_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pairs(tmp_path, {"train": 4})
    for i, size in enumerate([(24, 32), (20, 20), (32, 24)]):
        save(root / "images" / "val" / f"{i}.png", COLOURS[blobs(i, size)])
        save(root / "masks" / "val" / f"{i}.png", blobs(i, size))
    data = open_masks(str(root))
    truth = sum(torch.bincount(data.val.target(i).flatten().long(), minlength=256) for i in range(3))
    counts, batches = torch.zeros(256, dtype=torch.int64), []
    for rank in range(2):
        module = loaders(data, workers=0)
        monkeypatch.setattr(module, "process", lambda rank=rank: (rank, 2))
        masks = [mask for _, mask in module.val_dataloader()]
        batches.append(len(masks))
        counts += sum(torch.bincount(mask.flatten(), minlength=256) for mask in masks)
    assert batches == [2, 2]
    assert torch.equal(counts[:255], truth[:255])
    assert counts[255] == 24 * 32


@pytest.mark.parametrize("short_side", [None, 40])
def test_predict_sees_of_a_photograph_what_evaluation_sees(short_side: int | None) -> None:
    input = InputSpec(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
    for size in ((60, 97), (97, 60), (40, 41), (33, 33)):
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        evaluate = mask_transforms(SceneAugment(short_side=short_side), input, 255).evaluate
        wanted, _ = evaluate(picture, np.zeros(size, dtype=np.uint8))
        assert torch.equal(seen(picture, input, short_side), wanted), size
