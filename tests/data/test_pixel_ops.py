"""Every batched operation against PIL's, which timm's RandAugment calls."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment as timm_ops

from deepvit.data.batched import pixel_ops as px
from deepvit.data.batched import randaugment

COUNT = 6


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Photograph-like (smooth), noisy, dark, bright, flat, and two-valued images, not square."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:20, 0:28]
    smooth = np.stack([128 + 90 * np.sin(x / 5 + c) * np.cos(y / (3 + c)) for c in range(3)])
    noisy = rng.integers(0, 256, (3, 20, 28))
    flat = np.broadcast_to(np.array([9, 200, 77])[:, None, None], (3, 20, 28))
    two = np.where(x[None] > 13, 240, 30) + np.zeros((3, 20, 28))
    return torch.from_numpy(
        np.stack([smooth, noisy, noisy // 5, 200 + noisy // 6, flat, two]).astype(np.uint8)
    )


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def agree(mine: torch.Tensor, theirs: list[Image.Image], tolerance: int = 0) -> None:
    expected = torch.stack([tensor(image) for image in theirs])
    assert mine.dtype == torch.uint8
    assert (mine.int() - expected.int()).abs().max() <= tolerance


def test_tables_without_argument(images: torch.Tensor) -> None:
    for table, reference in (
        (px.invert_table(COUNT, images.device), ImageOps.invert),
        (px.autocontrast_table(images), ImageOps.autocontrast),
        (px.equalize_table(images), ImageOps.equalize),
    ):
        agree(px.apply_table(images, table), [reference(pil(image)) for image in images])


def test_equalize_of_few_pixels_and_many_values() -> None:
    few = torch.randint(0, 256, (8, 3, 16, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    agree(px.apply_table(few, px.equalize_table(few)), [ImageOps.equalize(pil(image)) for image in few])


def test_tables_with_argument(images: torch.Tensor) -> None:
    for values, table, reference in (
        ([1, 2, 3, 4, 7, 8], px.posterize_table, timm_ops.posterize),
        ([0, 1, 100, 128, 255, 256], px.solarize_table, timm_ops.solarize),
        ([0, 1, 40, 90, 110, 128], px.solarize_add_table, timm_ops.solarize_add),
    ):
        mine = px.apply_table(images, table(torch.tensor(values)))
        agree(mine, [reference(pil(image), v) for image, v in zip(images, values, strict=True)])


def test_posterize_to_nothing_is_black(images: torch.Tensor) -> None:
    assert px.apply_table(images, px.posterize_table(torch.zeros(COUNT, dtype=torch.long))).max() == 0


FACTORS = [0.1, 0.55, 1.0, 1.3, 1.9, 0.0]


@pytest.mark.parametrize(
    ("run", "reference"),
    [
        (lambda x, f: px.apply_table(x, px.brightness_table(f)), ImageEnhance.Brightness),
        (lambda x, f: px.apply_table(x, px.contrast_table(x, f)), ImageEnhance.Contrast),
        (px.saturation, ImageEnhance.Color),
        (px.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_enhancements(
    images: torch.Tensor, run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], reference: type
) -> None:
    mine = run(images, torch.tensor(FACTORS))
    # PIL computes in float32 and cuts off: a last bit decides between neighbours
    agree(mine, [reference(pil(image)).enhance(f) for image, f in zip(images, FACTORS, strict=True)], 1)
    share = np.mean(
        [
            np.mean(np.array(reference(pil(image)).enhance(f)) == mine[i].permute(1, 2, 0).numpy())
            for i, (image, f) in enumerate(zip(images, FACTORS, strict=True))
        ]
    )
    assert share > 0.99


def test_blur_is_near_pils(images: torch.Tensor) -> None:
    sigma = [0.1, 0.5, 1.0, 1.5, 2.0, 0.8]
    mine = px.gaussian_blur(images, torch.tensor(sigma))
    for i, image in enumerate(images):
        theirs = tensor(timm_ops.gaussian_blur(pil(image), sigma[i]))
        assert (mine[i].float() - theirs.float()).abs().mean() < 3.0


SHIFTS = [0.0, 0.1, -0.25, 0.3, -0.45, 0.45]


@pytest.mark.parametrize(
    ("matrix", "reference", "values"),
    [
        (randaugment._shear_x, timm_ops.shear_x, SHIFTS),
        (randaugment._shear_y, timm_ops.shear_y, SHIFTS),
        (randaugment._translate_x, timm_ops.translate_x_rel, SHIFTS),
        (randaugment._translate_y, timm_ops.translate_y_rel, SHIFTS),
        (px.rotation_matrix, timm_ops.rotate, [0.0, 7.0, -30.0, 90.0, 15.5, -2.0]),
    ],
)
def test_geometry(
    images: torch.Tensor,
    matrix: Callable[..., torch.Tensor],
    reference: Callable[..., Image.Image],
    values: list[float],
) -> None:
    fill = (11, 99, 200)
    mine = px.affine(images, matrix(torch.tensor(values), 20, 28), torch.tensor(fill).float())
    for i, (image, value) in enumerate(zip(images, values, strict=True)):
        theirs = tensor(reference(pil(image), value, resample=Image.Resampling.BILINEAR, fillcolor=fill))
        difference = (mine[i].int() - theirs.int()).abs()
        # on the very edge of the image the two may disagree whether a point is still inside
        assert (difference > 2).float().mean() < 0.03
        assert difference[:, 8:12, 10:18].max() <= 2


@pytest.mark.parametrize("name", sorted(randaugment._KIND))
def test_strengths_are_timms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "GaussianBlurRand":
        return  # its argument is drawn inside timm's operation; test_policies covers the range
    to_argument = randaugment._KIND[name][1]
    for coin, level in ((0.9, 9.0), (0.1, 9.0), (0.9, 3.4), (0.1, 0.0), (0.1, 10.0)):
        monkeypatch.setattr(random, "random", lambda coin=coin: coin)
        function = timm_ops.LEVEL_TO_ARG[name]
        if function is None:
            continue
        (expected,) = function(level, {"translate_pct": 0.45})
        if name == "Desaturate":
            expected = min(1.0, max(0.0, 1.0 - expected))
        mine = to_argument(torch.tensor([level / 10]), torch.tensor([coin]))
        assert mine.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "rand-m9-mstd0.5-inc1",
        "rand-m5-n3-p1",
        "rand-m8-tweights",
        "rand-t3a-mstd101",
        "3a",
        "v0",
        "original-mstd0.5",
    ],
)
def test_policies_run_and_repeat(images: torch.Tensor, text: str) -> None:
    policy = randaugment.BatchPolicy(text, (100.0, 110.0, 120.0), 20)
    batch = images.repeat(20, 1, 1, 1)
    results = [policy(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert results[0].dtype == torch.uint8
    assert results[0].shape == batch.shape
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(batch, images.repeat(20, 1, 1, 1))  # the input is left as it is


def test_operations_come_as_often_as_timms(images: torch.Tensor) -> None:
    """Share of images that a layer leaves as they are: 1 - p, for an operation that always changes them."""
    policy = randaugment.BatchPolicy("rand-m9-n1-p0.3", (0.0, 0.0, 0.0), 20)
    policy.names = ["Invert"] * len(policy.ops)
    batch = images[1:2].repeat(2000, 1, 1, 1)
    changed = (policy(batch, torch.Generator().manual_seed(0)) != batch).flatten(1).any(1).float().mean()
    assert 0.26 < changed < 0.34


def test_each_image_has_its_own_operation_and_strength(images: torch.Tensor) -> None:
    policy = randaugment.BatchPolicy("rand-m9-mstd1-n2-p1", (0.0, 0.0, 0.0), 20)
    out = policy(images[:1].repeat(64, 1, 1, 1), torch.Generator().manual_seed(0))
    assert len({bytes(image.numpy().tobytes()) for image in out}) > 55
