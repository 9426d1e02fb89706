"""Augmentation of whole batches: uint8 images [B, 3, h, w] to normalised float32 [B, 3, H, W].

Every image draws its own parameters; a seeded generator decides everything. Order as in timm: crop, mirror,
RandAugment, colour jitter, normalise, erase. Equal to timm's / torchvision's forms in distribution: padded
random crop, random resized crop (bilinear), mirror, RandAugment (see randaugment.py), random erasing.
Different on purpose: colour jitter draws the *order* of its three steps once a batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from deepvit.data.augmentation import AugmentConfig
from deepvit.data.batched.pixel_ops import affine
from deepvit.data.batched.randaugment import BatchPolicy

Tensor = torch.Tensor
Size = tuple[int, int]


class Normalize:
    """uint8 (or float 0..255) images to ``(x / 255 - mean) / std``, float32."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.scale = (1.0 / (255.0 * torch.tensor(std))).view(1, 3, 1, 1)
        self.shift = (-torch.tensor(mean) / torch.tensor(std)).view(1, 3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """A new tensor, also when ``images`` is float already."""
        return (images * self.scale).add_(self.shift)


class BatchAugment:
    """The training transform of images that are in memory; ``config`` has no None left (see ``resolve``).

    ``size`` (H, W) is the network's. Images of another size are augmented as they are and scaled at the end.
    """

    def __init__(
        self,
        config: AugmentConfig,
        size: Size,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bicubic",
    ) -> None:
        self.config, self.size, self.interpolation = config, size, interpolation
        self.normalize = Normalize(mean, std)
        fill = (255.0 * mean[0], 255.0 * mean[1], 255.0 * mean[2])
        self.fill = torch.tensor(fill)
        self.policy = BatchPolicy(config.randaugment, fill, min(size)) if config.randaugment else None

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images float32 [B, 3, H, W]; the input is left as it is."""
        config = self.config
        assert config.crop_padding is not None
        assert config.crop_scale is not None
        assert config.hflip is not None
        if config.crop_padding:
            # the padding is given in pixels of the network's size; the image may be stored smaller
            padding = max(1, round(config.crop_padding * images.shape[-1] / self.size[1]))
            images = shift_crop(images, padding, generator)
        elif config.crop_scale != (1.0, 1.0):
            images = resized_crop(images, config.crop_scale, config.crop_ratio, generator)
        images = mirror(images, config.hflip, -1, generator)
        images = mirror(images, config.vflip, -2, generator)
        if self.policy is not None:
            images = self.policy(images, generator)
        if config.color_jitter:
            images = color_jitter(images, config.color_jitter, generator)
        batch = self.normalize(images)
        if batch.shape[-2:] != self.size:
            batch = upscale(batch, self.size, self.interpolation)
        if config.random_erasing:
            erase(batch, config.random_erasing, config.erasing_mode, config.erasing_count, generator)
        return batch


def shift_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pads with black and cuts the old size out at a random place (torchvision's RandomCrop)."""
    count, _, height, width = images.shape
    offsets = torch.randint(2 * padding + 1, (2, count), generator=generator)
    wide = F.pad(images, (padding,) * 4)
    windows = wide.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count), :, offsets[0], offsets[1]]


def resized_crop(
    images: Tensor, scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Random resized crop to the same size, bilinear; ten tries, then the whole image (square images)."""
    count, _, height, width = images.shape
    tries = 10
    area = _uniform((count, tries), scale[0], scale[1], generator) * (height * width)
    aspect = _uniform((count, tries), math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    cut_w, cut_h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    cut_h, cut_w = _first_fit(cut_h, cut_w, (cut_h <= height) & (cut_w <= width))
    cut_h, cut_w = torch.where(cut_h > 0, cut_h, height), torch.where(cut_w > 0, cut_w, width)
    place = torch.rand(2, count, generator=generator)
    top, left = (place[0] * (height - cut_h + 1)).floor(), (place[1] * (width - cut_w + 1)).floor()
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 2] = cut_w / width, left
    matrix[:, 1, 1], matrix[:, 1, 2] = cut_h / height, top
    return affine(images, matrix, torch.zeros(3))


def mirror(images: Tensor, probability: float, dim: int, generator: torch.Generator) -> Tensor:
    """Flips each image along ``dim`` with this probability."""
    if not probability:
        return images
    flipped = torch.rand(len(images), generator=generator) < probability
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(dim), images)


def color_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation by factors in [1 - strength, 1 + strength]; float32 0..255 out."""
    count = len(images)
    low = max(0.0, 1.0 - strength)
    factors = _uniform((3, count, 1, 1, 1), low, 1.0 + strength, generator)
    batch = images.float()
    if batch is images:
        batch = batch.clone()
    for step in torch.randperm(3, generator=generator).tolist():
        if step == 0:
            batch.mul_(factors[0])
        else:
            luminance = _luminance(batch)
            base = luminance.mean((1, 2, 3), keepdim=True) if step == 1 else luminance
            batch.sub_(base).mul_(factors[step]).add_(base)
        batch.clamp_(0.0, 255.0)
    return batch


def erase(batch: Tensor, probability: float, mode: str, count: int, generator: torch.Generator) -> None:
    """Random erasing in place as timm has it: area 2% to a third, aspect 0.3 to 3.3, ten tries."""
    rows = (torch.rand(len(batch), generator=generator) < probability).nonzero().flatten()
    if not len(rows):
        return
    height, width = batch.shape[-2:]
    number = torch.randint(1, count + 1, (len(rows),), generator=generator)
    images = batch[rows]
    for turn in range(count):
        shape, tries = (len(rows), 10), math.log(0.3)
        area = _uniform(shape, 0.02, 1 / 3, generator) * (height * width) / number[:, None]
        aspect = _uniform(shape, tries, -tries, generator).exp()
        cut_h, cut_w = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        cut_h, cut_w = _first_fit(cut_h, cut_w, (cut_h < height) & (cut_w < width))
        cut_h = torch.where(number > turn, cut_h, 0.0)
        place = torch.rand(2, len(rows), generator=generator)
        top, left = (place[0] * (height - cut_h + 1)).floor(), (place[1] * (width - cut_w + 1)).floor()
        hole = _between(top, cut_h, height)[:, :, None] & _between(left, cut_w, width)[:, None, :]
        images = torch.where(hole[:, None], _erased(images, mode, generator), images)
    batch[rows] = images


def upscale(batch: Tensor, size: Size, interpolation: str, crop_pct: float = 1.0) -> Tensor:
    """Scales float images so that ``crop_pct`` of them fills ``size``, and cuts the middle out."""
    scaled = (math.floor(size[0] / crop_pct), math.floor(size[1] / crop_pct))
    if interpolation == "nearest":
        batch = F.interpolate(batch, scaled, mode="nearest")
    else:
        batch = F.interpolate(batch, scaled, mode=interpolation, align_corners=False, antialias=True)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return batch[:, :, top : top + size[0], left : left + size[1]]


def _erased(images: Tensor, mode: str, generator: torch.Generator) -> Tensor:
    if mode == "pixel":
        return torch.empty_like(images).normal_(generator=generator)
    if mode == "rand":
        return torch.randn(len(images), 3, 1, 1, generator=generator)
    return torch.zeros(1)


def _luminance(batch: Tensor) -> Tensor:
    return (
        (batch[:, 0:1] * 0.299).add_(batch[:, 1:2], alpha=0.587).add_(batch[:, 2:3], alpha=0.114)
    )  # ITU-R 601


def _first_fit(cut_h: Tensor, cut_w: Tensor, fits: Tensor) -> tuple[Tensor, Tensor]:
    """Of ten drawn boxes [n, 10] the first that fits, or a box of 0 × 0."""
    first = fits.int().argmax(1, keepdim=True)
    found = fits.gather(1, first)
    return (
        (cut_h.gather(1, first) * found).squeeze(1),
        (cut_w.gather(1, first) * found).squeeze(1),
    )


def _between(start: Tensor, length: Tensor, size: int) -> Tensor:
    position = torch.arange(size)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low
