"""Joint transforms of an image and its mask, by torchvision v2: scale, cut, mirror, colours; evaluation of whole images."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from deepvit.data.inputs import InputSpec, Size
from deepvit.data.transforms import Transforms
from deepvit.masks.augmentation import SceneAugment

TRIES = 10
HUE = 1 / 7
"""Range of the random hue beside that of brightness: the usual photometric distortion has 18 of 255 beside 0.5."""


def mask_transforms(augment: SceneAugment, input: InputSpec, ignore_index: int) -> Transforms:
    """Transforms of (PIL image in RGB, mask [H, W]) to (float32 [3, h, w] normalised, int64 [h, w]).

    Training: a random scale of image and mask, a square cut with at most ``max_share`` of one class, a mirror image, and
    photometric distortion of the image; where the cut is larger than the scaled image, the mean colour and
    ``ignore_index`` fill it at the right and the bottom. The draws are torch's, so the loader's seeds fix them.

    Evaluation: the whole image at its own size (``short_side`` scales it, and its mask with it), nothing cut away and
    nothing added. Batches then hold images of one size only (``Transforms.whole``): what a network says of an image, and
    every figure, is the same for any batch size.

    Diagnosis (``look``): scaled until it covers what the network takes, and the middle cut out.

    Args:
        augment: what is None in it has its usual value here; ``MaskData.transforms`` chooses by the data.
        input: what the network takes: the size of the cut unless ``crop_size`` is given, mean, std and interpolation.
        ignore_index: value of pixels that do not count.
    """
    chosen = augment.filled()
    assert chosen.scale is not None
    crop = (chosen.crop_size, chosen.crop_size) if chosen.crop_size is not None else input.hw
    mode = InterpolationMode(input.interpolation)
    first: list[Any] = [ShortSide(chosen.short_side, mode)] if chosen.short_side is not None else []
    colours: list[Any] = []
    if chosen.photometric:
        strength = chosen.photometric
        span = (1.0 - strength, 1.0 + strength)
        # what torchvision adds to the original, a random order of the channels, is left out: grass does not turn blue
        colours = [
            v2.RandomApply([v2.ColorJitter(brightness=span)]),
            v2.RandomApply([v2.ColorJitter(contrast=span, saturation=span, hue=min(strength * HUE, 0.5))]),
        ]
    train = v2.Compose(
        [
            *first,
            RandomScale(chosen.scale, mode),
            Cut(crop, chosen.max_share, ignore_index, input.mean),
            v2.RandomHorizontalFlip(chosen.hflip),
            *colours,
        ]
    )
    evaluate = v2.Compose(first) if first else v2.Identity()
    look = v2.Compose([Cover(input.hw, mode), v2.CenterCrop(input.hw)])
    return Transforms(
        Joint(train, input),
        Joint(evaluate, input),
        look=Joint(look, input),
        whole=True,
    )


class Joint:
    """A torchvision transform of image and mask together, then normalisation of the image."""

    def __init__(self, transform: Any, input: InputSpec) -> None:
        self.transform = transform
        self.mean, self.std = list(input.mean), list(input.std)

    def __call__(self, image: Image.Image, mask: Any) -> tuple[Tensor, Tensor]:
        """Image float32 [3, h, w] and mask int64 [h, w]."""
        labels = torch.as_tensor(mask)[None]
        picture, classes = self.transform(tv_tensors.Image(tvf.pil_to_tensor(image)), tv_tensors.Mask(labels))
        pixels = picture.as_subclass(Tensor).to(torch.float32) / 255.0
        normal = tvf.normalize(pixels, self.mean, self.std)
        return normal.contiguous(), classes.as_subclass(Tensor)[0].to(torch.int64).contiguous()


class _Resized(v2.Transform):
    """Scales image and mask to ``params["size"]``: the image smoothly, the mask by the class at each new pixel's middle."""

    def __init__(self, mode: InterpolationMode) -> None:
        super().__init__()
        self.mode = mode

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Image or mask at the new size."""
        size: Size = params["size"]
        if tuple(inpt.shape[-2:]) == size:
            return inpt
        if isinstance(inpt, tv_tensors.Mask):
            # v2 resizes masks by "nearest", which takes each new pixel's corner: half a pixel off from the image
            raw = inpt.as_subclass(Tensor)
            values = raw if raw.dtype == torch.uint8 else raw.to(torch.float64)  # exact for whole numbers
            scaled = torch.nn.functional.interpolate(values[None], list(size), mode="nearest-exact")[0]
            return tv_tensors.Mask(scaled.to(raw.dtype))
        return resized(inpt, size, self.mode)


class ShortSide(_Resized):
    """Scales until the shorter side has so many pixels."""

    def __init__(self, side: int, mode: InterpolationMode) -> None:
        super().__init__(mode)
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size."""
        height, width = flat_inputs[0].shape[-2:]
        return {"size": times(height, width, self.side / min(height, width))}


class Cover(_Resized):
    """Scales until a size is just covered."""

    def __init__(self, size: Size, mode: InterpolationMode) -> None:
        super().__init__(mode)
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size."""
        height, width = flat_inputs[0].shape[-2:]
        by = max(self.size[0] / height, self.size[1] / width)
        new = times(height, width, by)
        return {"size": (max(new[0], self.size[0]), max(new[1], self.size[1]))}


class RandomScale(_Resized):
    """Scales by a factor drawn evenly from a range."""

    def __init__(self, scale: tuple[float, float], mode: InterpolationMode) -> None:
        super().__init__(mode)
        self.scale = scale

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The new size."""
        height, width = flat_inputs[0].shape[-2:]
        by = float(torch.empty(()).uniform_(*self.scale)) if self.scale[0] < self.scale[1] else self.scale[0]
        return {"size": times(height, width, by)}


class Cut(v2.Transform):
    """Cuts out a place of one size, filled up at the right and the bottom where the image is smaller.

    Of ``TRIES`` random places the first in which no class has more than ``max_share`` of the pixels that count, else the
    one that comes nearest to it; a cut of void alone, which teaches nothing, comes last.
    """

    def __init__(self, size: Size, max_share: float, ignore_index: int, mean: tuple[float, ...]) -> None:
        super().__init__()
        self.size, self.max_share, self.ignore_index = size, max_share, ignore_index
        self.fill = [round(255 * value) for value in mean]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Top and left of the place."""
        mask = next(one for one in flat_inputs if isinstance(one, tv_tensors.Mask)).as_subclass(Tensor)[0]
        height, width = mask.shape
        rooms = max(0, height - self.size[0]), max(0, width - self.size[1])
        kept, best = (0, 0), math.inf
        for _ in range(TRIES if rooms != (0, 0) else 0):
            top, left = (int(torch.randint(room + 1, ())) for room in rooms)
            share = self.share(mask[top : top + self.size[0], left : left + self.size[1]])
            if share < best:
                kept, best = (top, left), share
            if share <= self.max_share:
                break
        return {"place": kept}

    def share(self, mask: Tensor) -> float:
        """Share of the most frequent class among the pixels that count; 2 where none does."""
        classes = mask[mask != self.ignore_index]
        if not len(classes):
            return 2.0
        return int(classes.flatten().to(torch.int64).bincount().max()) / len(classes)

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The place."""
        top, left = params["place"]
        height, width = self.size
        part = inpt[..., top : top + height, left : left + width]
        below, right = height - part.shape[-2], width - part.shape[-1]
        is_mask = isinstance(inpt, tv_tensors.Mask)
        if below or right:
            fill = self.ignore_index if is_mask else self.fill
            part = tvf.pad(tv_tensors.wrap(part, like=inpt), [0, 0, right, below], fill=fill)
        return tv_tensors.wrap(part, like=inpt)


def times(height: int, width: int, factor: float) -> Size:
    """A size multiplied, at least one pixel each way."""
    return max(1, round(height * factor)), max(1, round(width * factor))


def resized(image: Any, size: Size, mode: InterpolationMode) -> Any:
    """An image uint8 [3, H, W] at another size, smoothed where it shrinks; by PIL for what only PIL has."""
    if mode in (InterpolationMode.LANCZOS, InterpolationMode.BOX, InterpolationMode.HAMMING):
        picture = tvf.resize(tvf.to_pil_image(image.as_subclass(Tensor)), list(size), interpolation=mode)
        return tv_tensors.Image(tvf.pil_to_tensor(picture))
    exact = InterpolationMode.NEAREST_EXACT if mode is InterpolationMode.NEAREST else mode
    return tvf.resize(image, list(size), interpolation=exact, antialias=True)
