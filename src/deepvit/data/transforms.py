"""Transforms of single images with their targets; for classification timm's own pipelines, of the image alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data.auto_augment import AutoAugment
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torchvision import transforms as tv

from deepvit.data.augmentation import AugmentConfig
from deepvit.data.batched.randaugment import parse_policy
from deepvit.data.inputs import InputSpec, Size

Transform = Callable[[Any, Any], tuple[torch.Tensor, Any]]
"""(PIL image in RGB, target as its set has it) to (image tensor [3, H, W], target): torchvision v2's calling form."""


class Transforms(NamedTuple):
    """The transform of training and that of evaluation, each of (image, target).

    Attributes:
        train: of training; all images of one size.
        evaluate: of evaluation.
        look: of diagnosis, where every image must have as many tokens as the others; None: as evaluation.
        whole: evaluation keeps the shape of each image, so that a batch can only hold images of one size.
    """

    train: Transform
    evaluate: Transform
    look: Transform | None = None
    whole: bool = False


class ImageOnly:
    """A transform of images as one of (image, target) that leaves the target as it is."""

    def __init__(self, transform: Callable[[Any], torch.Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Any, target: Any) -> tuple[torch.Tensor, Any]:
        """The transformed image, and the target."""
        return self.transform(image), target


def classification_transforms(config: AugmentConfig, spec: InputSpec) -> Transforms:
    """timm's pipelines for a resolved ``config`` and what the network takes."""
    train = train_transform(config, spec.hw, spec.mean, spec.std, spec.interpolation)
    return Transforms(ImageOnly(train), ImageOnly(transform_of(spec)))


def transform_of(spec: InputSpec) -> Any:
    """PIL image to float32 [3, H, W], as evaluation and prediction take it."""
    return eval_transform(spec.hw, spec.mean, spec.std, spec.interpolation, spec.crop)


def train_transform(
    config: AugmentConfig, size: Size, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str
) -> Any:
    """PIL image to float32 [3, H, W]: exactly timm's training transform for a resolved ``config``.

    Random interpolation in the resized crop, as timm's default. With ``crop_padding`` (or no crop at all)
    the first stage is instead: resize, cut the middle, shift. Colour jitter is applied beside RandAugment
    when its strength is above 0, which timm calls forced.
    """
    assert config.crop_scale is not None
    assert config.randaugment is not None
    if config.randaugment:  # for a clear message
        parse_policy(config.randaugment, (128.0, 128.0, 128.0), min(size))
    first, second, last = transforms_imagenet_train(
        size,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter or None,
        force_color_jitter=bool(config.color_jitter),
        auto_augment=config.randaugment or None,
        interpolation="random",
        mean=mean,
        std=std,
        re_prob=config.random_erasing,
        re_mode=config.erasing_mode,
        re_count=config.erasing_count,
        separate=True,
    )
    if config.crop_scale == (1.0, 1.0):
        flips = first.transforms[1:]  # what follows the resized crop
        shift = [tv.RandomCrop(size, padding=config.crop_padding)] if config.crop_padding else []
        first = tv.Compose([geometry(size, interpolation, 1.0), *shift, *flips])
    for policy in second.transforms:
        _mend_posterize(policy)
    return tv.Compose([first, second, last])


def _mend_posterize(policy: Any) -> None:
    """timm asks PIL to keep 0 bits at full strength, which newer PIL refuses; the result always was black."""
    groups = policy.policy if isinstance(policy, AutoAugment) else [getattr(policy, "ops", [])]
    for op in (op for group in groups for op in group if op.name.startswith("Posterize")):
        op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    return image.point([value & (255 << (8 - bits_to_keep) & 255) for value in range(256)] * 3)


def eval_transform(
    size: Size, mean: tuple[float, ...], std: tuple[float, ...], interpolation: str, crop_pct: float
) -> Any:
    """PIL image to float32 [3, H, W]: timm's evaluation transform (resize, cut the middle ``crop_pct``)."""
    return transforms_imagenet_eval(size, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std)


def geometry(size: Size, interpolation: str, crop_pct: float) -> Any:
    """PIL image to a PIL image of exactly ``size``: the resize and the cut of ``eval_transform`` alone."""
    steps = transforms_imagenet_eval(
        size, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True
    ).transforms
    return tv.Compose(steps[:-1])  # the last makes a tensor
