from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from data.conftest import picture
from PIL import Image
from timm.data import create_transform

from deepvit.data.augmentation import AugmentConfig, no_augmentation, resolve
from deepvit.data.batched.seeds import global_seed
from deepvit.data.transforms import eval_transform, geometry, train_transform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_training_transform_is_timms() -> None:
    config = resolve(AugmentConfig(), side=224, mirror=True)
    mine = train_transform(config, (64, 64), MEAN, STD, "bicubic")
    theirs = create_transform(
        64, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel",
        interpolation="random", mean=MEAN, std=STD,
    )  # fmt: skip
    compared = 0
    for seed in range(12):
        image = picture(seed, (90, 70))
        with global_seed(seed):
            a = mine(image)
        with global_seed(seed):
            try:
                b = theirs(image)
            except ValueError:  # newer PIL refuses to posterize to 0 bits
                continue
        assert torch.equal(a, b)
        compared += 1
    assert compared > 6


def test_evaluation_transform_is_timms() -> None:
    image = picture(0, (90, 70))
    mine = eval_transform((64, 48), MEAN, STD, "bicubic", 0.9)(image)
    theirs = create_transform((64, 48), crop_pct=0.9, interpolation="bicubic", mean=MEAN, std=STD)(image)
    assert torch.equal(mine, theirs)
    kept = torch.from_numpy(np.array(geometry((64, 48), "bicubic", 0.9)(image))).permute(2, 0, 1) / 255
    expected = (kept - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(mine, expected)


def test_full_strength_posterize_does_not_crash() -> None:
    config = AugmentConfig(randaugment="rand-m10-n4-p1-inc1", crop_padding=0, crop_scale=(1.0, 1.0))
    transform = train_transform(resolve(config, side=224, mirror=True), (32, 32), MEAN, STD, "bicubic")
    for seed in range(30):
        with global_seed(seed):
            assert transform(picture(seed, (40, 40))).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "option",
    [
        {"crop_padding": 20},
        {"crop_scale": (0.3, 0.5)},
        {"hflip": 1.0},
        {"vflip": 1.0},
        {"randaugment": "rand-m9-n3-p1-mstd0.5-inc1"},
        {"color_jitter": 0.4},
        {"random_erasing": 1.0},
    ],
)
def test_each_option_alone_has_its_effect(option: dict[str, object]) -> None:
    size = (64, 64)
    transform = train_transform(replace(no_augmentation(), **option), size, MEAN, STD, "bicubic")
    plain = eval_transform(size, MEAN, STD, "bicubic", 1.0)
    changed = 0
    for seed in range(8):
        image = picture(seed, size)
        with global_seed(seed):
            changed += not torch.equal(transform(image), plain(image))
    assert changed >= 6
    unchanged = train_transform(no_augmentation(), size, MEAN, STD, "bicubic")
    assert torch.equal(unchanged(picture(0, size)), plain(picture(0, size)))


def test_color_jitter_beside_randaugment_when_it_is_given() -> None:
    config = replace(no_augmentation(), randaugment="rand-m9-p0", color_jitter=0.4)
    transform = train_transform(config, (32, 32), MEAN, STD, "bicubic")
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    assert len({float(transform(grey)[0, 0, 0]) for _ in range(8)}) > 4


def test_shift_crop_for_large_images() -> None:
    config = resolve(
        AugmentConfig(crop_padding=8, hflip=0.0, randaugment="", color_jitter=0.0, random_erasing=0.0),
        side=128,
        mirror=True,
    )
    assert config.crop_scale == (1.0, 1.0)
    transform = train_transform(config, (128, 128), (0.0,) * 3, (1.0,) * 3, "bicubic")
    image = picture(0, (128, 128))
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    seen = set()
    for seed in range(5):
        with global_seed(seed):
            out = transform(image)
        places = [
            (dy, dx)
            for dy in range(-8, 9)
            for dx in range(-8, 9)
            if torch.equal(out[:, 20:100, 20:100], whole[:, 20 + dy : 100 + dy, 20 + dx : 100 + dx])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("side", "mirror", "expected"),
    [
        (
            32,
            True,
            {"crop_padding": 4, "hflip": 0.5, "mixup": 0.0, "label_smoothing": 0.1, "color_jitter": 0.0},
        ),
        (
            32,
            False,
            {"crop_padding": 2, "hflip": 0.0, "randaugment": "", "label_smoothing": 0.0, "color_jitter": 0.0},
        ),
        (
            224,
            True,
            {
                "crop_padding": 0,
                "crop_scale": (0.08, 1.0),
                "mixup": 0.8,
                "cutmix": 1.0,
                "random_erasing": 0.25,
            },
        ),
    ],
)
def test_defaults_by_image_size(side: int, mirror: bool, expected: dict[str, object]) -> None:
    config = resolve(AugmentConfig(), side=side, mirror=mirror)
    assert {key: getattr(config, key) for key in expected} == expected


def test_given_options_win_over_defaults() -> None:
    config = resolve(AugmentConfig(crop_scale=(0.5, 1.0), randaugment="", mixup=0.3), side=32, mirror=True)
    assert (config.crop_padding, config.crop_scale, config.mixup) == (0, (0.5, 1.0), 0.3)
    assert config.color_jitter == 0.4  # as in timm: on where RandAugment is off
    assert not no_augmentation().mixes
