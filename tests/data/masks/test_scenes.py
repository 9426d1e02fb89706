"""Drawn scenes: a function of (seed, epoch, index), with masks that say which pixels are a digit's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from deepvit.data.masks import MaskData, open_masks
from deepvit.data.masks.scenes import TRAIN_ROWS, DigitScenes, enlarged
from deepvit.errors import UserError


@pytest.fixture(scope="module")
def data() -> MaskData:
    return open_masks("digit-scenes")


def scenes(images: object) -> DigitScenes:
    assert isinstance(images, DigitScenes)
    return images


def test_what_there_is(data: MaskData) -> None:
    assert (len(data.train), len(data.val), data.num_classes) == (2000, 400, 11)
    assert (data.class_names[0], data.class_names[1], data.class_names[10]) == (
        "ground",
        "digit 0",
        "digit 9",
    )
    assert (data.mirror, data.fresh) == (False, True)
    other = open_masks("digit-scenes", scenes=12, scene_size=96)
    assert (len(other.train), other.train.image(3).size) == (12, (96, 96))
    for options in ({"scenes": 0}, {"scene_size": 20}):
        with pytest.raises(UserError, match="must"):
            open_masks("digit-scenes", **options)


def test_training_and_validation_share_no_digit_and_no_ground(data: MaskData) -> None:
    train, val = scenes(data.train), scenes(data.val)
    every = load_digits().images
    known = {digit.tobytes() for digit in np.round(every * 255 / 16).astype(np.uint8)}
    parts = [{digit.tobytes() for digit in part.digits} for part in (train, val)]
    assert parts[0] | parts[1] == known
    assert len(train.digits) + len(val.digits) == len(every)
    assert train.rows == (0, TRAIN_ROWS)
    assert val.rows == (TRAIN_ROWS, 512)


def test_scenes_follow_from_seed_epoch_and_index(data: MaskData) -> None:
    first = data.train.of_epoch(7, 0)
    again = open_masks("digit-scenes").train.of_epoch(7, 0)
    others = [data.train.of_epoch(7, 1), data.train.of_epoch(8, 0), data.train]
    for index in (0, 5, 1999):
        picture = np.asarray(first.image(index))
        assert np.array_equal(picture, np.asarray(again.image(index)))
        assert torch.equal(first.target(index), again.target(index))
        assert all(not np.array_equal(picture, np.asarray(other.image(index))) for other in others)
    assert data.val.of_epoch(7, 3) is data.val
    subset = data.train.subset([5, 3])
    assert np.array_equal(np.asarray(subset.of_epoch(7, 0).image(0)), np.asarray(first.image(5)))
    assert data.val.subset([1]).of_epoch(7, 0).where(0) == "scene 1"


def test_a_mask_is_the_ink(data: MaskData) -> None:
    """Under the mask of each digit the image is of one colour, unlike the ground around it."""
    apart, seen, sizes = [], np.zeros(11, dtype=int), []
    for index in range(120):
        picture = np.asarray(data.train.image(index)).astype(float)
        mask = data.train.target(index).numpy()
        assert mask.max() <= 10
        assert (mask > 0).any()
        seen += np.bincount(np.unique(mask), minlength=11)
        for label in np.unique(mask[mask > 0]):
            rows, columns = np.nonzero(mask == label)
            sizes.append(rows.max() - rows.min() + 1)
            place = np.s_[
                max(rows.min() - 1, 0) : rows.max() + 2, max(columns.min() - 1, 0) : columns.max() + 2
            ]
            ink, ground = picture[place][mask[place] == label], picture[place][mask[place] == 0]
            apart.append(np.abs(np.median(ink, 0) - np.median(ground, 0)).sum())
    assert seen.min() > 10
    assert np.quantile(apart, 0.02) > 40
    assert min(sizes) < 14
    assert max(sizes) > 24


def test_enlarging_keeps_a_digit(data: MaskData) -> None:
    digit = scenes(data.train).digits[0]
    assert np.allclose(enlarged(digit, 8), digit / 255, atol=0.01)
    large = enlarged(digit, 24)
    assert np.allclose(large.reshape(8, 3, 8, 3).mean((1, 3)), digit / 255, atol=0.25)
    assert abs(large.mean() - digit.mean() / 255) < 0.02


def test_targets_that_count_for_nothing(data: MaskData) -> None:
    assert (data.val.nothing(3) == 255).all()
    assert data.val.nothing(3).shape == (48, 48)
