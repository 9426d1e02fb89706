from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing

from deepvit.data.augmentation import AugmentConfig, no_augmentation, resolve
from deepvit.data.batched import augment
from deepvit.data.batched.augment import BatchAugment, Normalize
from deepvit.data.batched.mixing import make_mixing
from deepvit.data.batched.seeds import global_seed, seed_of
from deepvit.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 64, side: int = 16) -> torch.Tensor:
    return torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator())


def test_normalize() -> None:
    images = noise(2)
    expected = (images / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).view(3, 1, 1)
    torch.testing.assert_close(Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))(images), expected)


def test_nothing_on_is_normalisation_only() -> None:
    images = noise()
    out = BatchAugment(no_augmentation(), (16, 16), (0.0,) * 3, (1.0,) * 3)(images, generator())
    torch.testing.assert_close(out, images / 255)


@pytest.mark.parametrize(
    "option",
    [
        {"crop_padding": 2},
        {"crop_scale": (0.3, 0.5)},
        {"hflip": 1.0},
        {"vflip": 1.0},
        {"randaugment": "rand-m9-p1"},
        {"color_jitter": 0.4},
        {"random_erasing": 1.0},
    ],
)
def test_each_option_alone_has_its_effect(option: dict[str, object]) -> None:
    images = noise()
    transform = BatchAugment(replace(no_augmentation(), **option), (16, 16), (0.0,) * 3, (1.0,) * 3)
    out = transform(images, generator())
    changed = ((out - images / 255).abs() > 1e-3).flatten(1).any(1).float().mean()
    assert changed > 0.85
    for name, dim in (("hflip", -1), ("vflip", -2)):
        if name in option:
            torch.testing.assert_close(out, images.flip(dim) / 255)


def test_images_stored_small_are_shifted_in_proportion_and_scaled_up() -> None:
    transform = BatchAugment(replace(no_augmentation(), crop_padding=32), (128, 128), (0.0,) * 3, (1.0,) * 3)
    white = torch.full((300, 3, 16, 16), 255, dtype=torch.uint8)
    out = transform(white, generator())
    assert out.shape == (300, 3, 128, 128)
    black = 1 - out[:, 0].mean((1, 2))  # at most 4 of 16 rows and columns are beyond the edge
    assert 0.3 < black.max() < 0.48


def test_shift_crop_moves_each_image_by_its_own_offset_and_pads_black() -> None:
    images = noise()
    out = augment.shift_crop(images, 3, generator())
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    offsets = []
    for i in range(len(images)):
        places = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if torch.equal(out[i], padded[i, :, y : y + 16, x : x + 16])
        ]
        assert len(places) == 1
        offsets.append(places[0])
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(7))


def test_mirror_flips_the_right_share() -> None:
    images = noise(1000)
    flipped = (augment.mirror(images, 0.3, -1, generator()) == images.flip(-1)).flatten(1).all(1)
    assert 0.25 < flipped.float().mean() < 0.35
    assert torch.equal(augment.mirror(images, 1.0, -2, generator()), images.flip(-2))
    assert augment.mirror(images, 0.0, -1, generator()) is images


def test_resized_crop_of_a_ramp_keeps_slope_and_stays_inside() -> None:
    ramp = (torch.arange(32.0) * 7).to(torch.uint8).expand(200, 3, 32, 32).contiguous()
    out = augment.resized_crop(ramp, (0.25, 0.5), (1.0, 1.0), generator()).float()
    slope = (out[:, 0, 16, 24] - out[:, 0, 16, 8]) / 16 / 7  # = width of the cut / width of the image
    assert 0.45 < slope.min() < 0.6
    assert 0.65 < slope.max() < 0.76
    assert out.min() >= 0
    assert out[:, 0, 16, 0].min() < 10
    whole = augment.resized_crop(ramp, (1.0, 1.0), (1.0, 1.0), generator())
    assert torch.equal(whole, ramp)


def test_color_jitter_is_a_factor_on_grey_and_keeps_mean_contrast_point() -> None:
    grey = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)
    out = augment.color_jitter(grey, 0.4, generator())[:, 0, 0, 0] / 100
    assert 0.6 <= out.min() < 0.62
    assert 1.38 < out.max() <= 1.4
    assert 0.97 < out.mean() < 1.03
    images = noise(4)
    before = images.clone()
    augment.color_jitter(images, 0.4, generator())
    assert torch.equal(images, before)


def test_erasing_has_timms_distribution() -> None:
    mine = torch.ones(3000, 3, 32, 32)
    augment.erase(mine, 0.4, "const", 1, generator())
    holes = (mine[:, 0] == 0).float().mean((1, 2))
    theirs = torch.ones(3000, 3, 32, 32)
    with global_seed(0):
        RandomErasing(0.4, mode="const", device="cpu")(theirs)
    expected = (theirs[:, 0] == 0).float().mean((1, 2))
    assert abs((holes > 0).float().mean() - (expected > 0).float().mean()) < 0.03
    for q in (0.7, 0.9, 0.99):
        assert abs(holes.quantile(q) - expected.quantile(q)) < 0.025
    rows = (mine[:, 0] == 0).any(2).sum(1) * (mine[:, 0] == 0).any(1).sum(1) / 1024
    torch.testing.assert_close(rows, holes)  # the hole is a rectangle


@pytest.mark.parametrize(("mode", "values"), [("pixel", "many"), ("rand", "three"), ("const", "zero")])
def test_erasing_modes(mode: str, values: str) -> None:
    batch = torch.full((8, 3, 32, 32), 50.0)
    augment.erase(batch, 1.0, mode, 1, generator())
    for image in batch:
        found = image[image != 50].unique()
        assert {"many": len(found) > 10, "three": len(found) == 3, "zero": found.tolist() == [0.0]}[values]


def test_erasing_count() -> None:
    one, three = (torch.ones(2000, 3, 32, 32) for _ in range(2))
    augment.erase(one, 1.0, "const", 1, generator())
    augment.erase(three, 1.0, "const", 3, generator())
    assert (
        abs((one == 0).float().mean() - (three == 0).float().mean()) < 0.03
    )  # the area is shared among them

    def is_rectangle(image: torch.Tensor) -> bool:
        hole = image[0] == 0
        return int(hole.any(1).sum() * hole.any(0).sum()) == int(hole.sum())

    assert sum(is_rectangle(image) for image in three[:200]) < 120


def test_upscale_cuts_the_middle() -> None:
    x = torch.rand(2, 3, 10, 10)
    big = augment.upscale(x, (36, 36), "bilinear", 0.9)
    full = torch.nn.functional.interpolate(x, (40, 40), mode="bilinear", antialias=True)
    torch.testing.assert_close(big, full[:, :, 2:38, 2:38])


def test_everything_at_once_repeats_exactly_and_leaves_the_input() -> None:
    config = AugmentConfig(
        randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.4, random_erasing=0.5, vflip=0.3
    )
    transform = BatchAugment(resolve(config, side=16, mirror=True), (16, 16), (0.5,) * 3, (0.5,) * 3)
    images = noise()
    before = images.clone()
    outs = [transform(images, generator(seed)) for seed in (1, 1, 2)]
    assert outs[0].dtype == torch.float32
    assert outs[0].isfinite().all()
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert torch.equal(images, before)


def test_mixing_is_timms_and_seeded() -> None:
    mixing = make_mixing(resolve(AugmentConfig(mixup=0.8, cutmix=1.0), side=16, mirror=True), 5, 8)
    assert mixing is not None
    results = []
    for seed in (3, 3, 4):
        with global_seed(seed):
            results.append(
                mixing(torch.arange(8.0).view(8, 1, 1, 1).repeat(1, 3, 16, 16), torch.arange(8) % 5)
            )
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][0], results[2][0])
    smooth = results[0][1]
    assert smooth.min() >= 0.1 / 5 - 1e-6
    with pytest.raises(UserError, match="must be even"):
        make_mixing(AugmentConfig(mixup=0.8), 5, 7)
    assert make_mixing(no_augmentation(), 5, 7) is None


def test_global_seed_gives_back_the_old_state() -> None:
    with global_seed(1):
        inside = (torch.rand(1).item(), float(np.random.rand()))
        with global_seed(2):
            torch.rand(3)
        second = torch.rand(1).item()
    with global_seed(1):
        assert (torch.rand(1).item(), float(np.random.rand())) == inside
        assert torch.rand(1).item() == second


def test_seeds_differ_for_every_key() -> None:
    keys = {seed_of(a, b, c) for a in range(5) for b in range(5) for c in range(5)} | {
        seed_of(0),
        seed_of(0, 0),
    }
    assert len(keys) == 127
    assert all(0 <= key < 2**63 for key in keys)
