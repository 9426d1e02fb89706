"""Scenes with masks that need no files: handwritten digits of several sizes on photographs of brick, grass and gravel."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepvit.data.batched.seeds import seed_of
from deepvit.data.options import NoOptions, SceneOptions
from deepvit.data.sets import UNLABELLED, ImageSet
from deepvit.data.sources.digits import CLASS_NAMES, open_digits
from deepvit.data.sources.source import Source
from deepvit.errors import UserError
from deepvit.masks.dataset import MaskData
from deepvit.masks.ids import VOID
from deepvit.masks.palette import palette
from deepvit.masks.sets import MaskSet

Array = np.ndarray[Any, Any]
SIZE = 48
SCENES = 2000
VAL_SCENES = 400
DIGIT_SIDES = (14, 28)
"""Smallest and largest side in pixels of a digit's frame."""
PER_SCENE = (2, 4)
"""Digits in 48 × 48 pixels; a larger scene holds as many for its area."""
CLOSER = (1.0, 4.0)
"""Pixels of a photograph for one of a scene."""
TRAIN_ROWS = 320
"""Rows of the photographs of 512 that training scenes lie on; validation scenes have the others."""
INK = 0.5
"""Share of ink above which a pixel is the digit's."""
CONTRAST = 70.0
"""Least difference of brightness (of 255) between a digit and the ground around it."""
GREY = np.array([0.299, 0.587, 0.114])
PLACES = 20
CLASSES = ["ground", *(f"digit {name}" for name in CLASS_NAMES)]


@dataclass
class DrawnOptions(SceneOptions):
    """Options of digit-scenes."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        if self.scenes is not None and self.scenes < 1:
            raise UserError(f"scenes={self.scenes} must be at least 1")
        if self.scene_size is not None and not DIGIT_SIDES[1] <= self.scene_size <= 1024:
            raise UserError(f"scene_size={self.scene_size} must lie between {DIGIT_SIDES[1]} and 1024")


@dataclass(frozen=True)
class Scene:
    """Image uint8 [S, S, 3] and mask uint8 [S, S]: 0 ground, 1 + the digit."""

    image: Array
    mask: Array


class DigitScenes(MaskSet):
    """Scenes by number, each a function of (key, number).

    Args:
        digits: grey images uint8 [n, 8, 8].
        labels: their digits int64 [n].
        rows: first and last row (not included) of the photographs that the ground is cut from.
        count: scenes.
        size: height and width in pixels.
        key: whole numbers ≥ 0 that the scenes follow from.
    """

    ignore_index = VOID

    def __init__(
        self,
        digits: Array,
        labels: Array,
        rows: tuple[int, int],
        count: int,
        size: int,
        key: tuple[int, ...],
        *,
        fresh: bool,
    ) -> None:
        self.digits, self.labels, self.rows, self.side, self.key = digits, labels, rows, size, key
        self.fresh = fresh
        self.targets = torch.full((count,), UNLABELLED)
        self._last: tuple[int, Scene] | None = None

    def open(self, index: int) -> Image.Image:
        """Draws the scene."""
        return Image.fromarray(self.scene(index).image)

    def mask(self, index: int) -> torch.Tensor:
        """Draws the scene."""
        return torch.from_numpy(self.scene(index).mask.copy())

    def where(self, index: int) -> str:
        """Its number."""
        return f"scene {index}"

    def size(self, index: int) -> tuple[int, int]:
        """All have the same."""
        return self.side, self.side

    def of_epoch(self, seed: int, epoch: int) -> ImageSet:
        """Other scenes of the same digits, by (seed, epoch), for a set made anew each epoch."""
        if not self.fresh:
            return self
        key = (*self.key, seed, epoch)
        return DigitScenes(self.digits, self.labels, self.rows, len(self), self.side, key, fresh=False)

    def scene(self, index: int) -> Scene:
        """Image and mask; the last one is kept, as both are asked for in turn."""
        last = self._last
        if last is not None and last[0] == index:
            return last[1]
        scene = draw(
            np.random.default_rng(seed_of(*self.key, index)), self.digits, self.labels, self.rows, self.side
        )
        self._last = index, scene
        return scene


def draw(rng: np.random.Generator, digits: Array, labels: Array, rows: tuple[int, int], size: int) -> Scene:
    """One scene: a ground, and digits in colours that stand out from it, none over another."""
    image = ground(rng, rows, size)
    mask = np.zeros((size, size), dtype=np.uint8)
    area = (size / SIZE) ** 2
    few, many = (max(1, round(number * area)) for number in PER_SCENE)
    for _ in range(int(rng.integers(few, many + 1))):
        chosen = int(rng.integers(len(digits)))
        side = int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
        ink = enlarged(digits[chosen], side)
        for _ in range(PLACES):
            top, left = (int(rng.integers(size - side + 1)) for _ in range(2))
            place = (slice(top, top + side), slice(left, left + side))
            if not (mask[place] > 0)[ink > 0.05].any():
                image[place] = inked(rng, image[place], ink)
                mask[place][ink >= INK] = 1 + int(labels[chosen])
                break
    return Scene(np.clip(np.round(image), 0, 255).astype(np.uint8), mask)


def ground(rng: np.random.Generator, rows: tuple[int, int], size: int) -> Array:
    """Part of a photograph in two colours, floats [size, size, 3] of 0..255."""
    photograph = photographs()[int(rng.integers(len(photographs())))]
    room = rows[1] - rows[0]
    side = max(8, min(room, round(size * float(rng.uniform(*CLOSER)))))
    top = int(rng.integers(rows[0], rows[1] - side + 1))
    left = int(rng.integers(photograph.shape[1] - side + 1))
    part = Image.fromarray(photograph[top : top + side, left : left + side])
    grey = np.asarray(part.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0), dtype=np.float64)
    grey = np.rot90(grey, int(rng.integers(4)))
    low, high = np.quantile(grey, (0.02, 0.98))
    share = np.clip((grey - low) / max(high - low, 1.0), 0.0, 1.0)[..., None]
    dark = rng.uniform(0.0, 140.0, 3)
    light = np.minimum(dark + rng.uniform(50.0, 140.0, 3), 255.0)
    shaded: Array = dark + share * (light - dark)
    return shaded


def enlarged(digit: Array, side: int) -> Array:
    """The ink of a digit of 8 × 8 pixels at another size, floats [side, side] of 0..1, by a Lanczos filter."""
    grey = Image.fromarray(digit.astype(np.float32) / 255.0)
    ink: Array = np.clip(np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS)), 0.0, 1.0)
    return ink


def inked(rng: np.random.Generator, under: Array, ink: Array) -> Array:
    """The ground [s, s, 3] with a digit over it, in a colour that stands out from what is under it."""
    brightness = (
        float((under @ GREY)[ink >= INK].mean()) if (ink >= INK).any() else float((under @ GREY).mean())
    )
    colour = rng.uniform(0.0, 255.0, 3)
    for _ in range(PLACES):
        if abs(float(colour @ GREY) - brightness) >= CONTRAST:
            break
        colour = rng.uniform(0.0, 255.0, 3)
    else:
        colour = np.full(3, 255.0 if brightness < 128.0 else 0.0)
    # steeper than the filter's own edge: strokes of a pen, half covered where a pixel changes hands
    cover = np.clip((ink - INK) * 2.0 + 0.5, 0.0, 1.0)[..., None]
    result: Array = cover * colour + (1.0 - cover) * under
    return result


@functools.cache
def photographs() -> tuple[Array, ...]:
    """Brick, grass and gravel, grey uint8 [512, 512]: CC0 photographs (CC0Textures) that scikit-image ships."""
    from skimage import data  # half a second of import time that only this data set needs

    return data.brick(), data.grass(), data.gravel()


def open_scenes(spec: str, options: DrawnOptions) -> MaskData:
    """2,000 training scenes an epoch, new ones in each, of the digits' training part; 400 fixed ones of their test part.

    The ground of the two is cut from different rows of the photographs.
    """
    source = open_digits("digits", NoOptions())
    size = options.scene_size or SIZE
    height = photographs()[0].shape[0]
    parts: list[DigitScenes] = []
    for number, (images, rows, count) in enumerate(
        [
            (source.train, (0, TRAIN_ROWS), options.scenes or SCENES),
            (source.val, (TRAIN_ROWS, height), VAL_SCENES),
        ]
    ):
        digits: Any = images
        parts.append(
            DigitScenes(digits.array, digits.targets.numpy(), rows, count, size, (number,), fresh=number == 0)
        )
    return MaskData(
        spec,
        parts[0],
        parts[1],
        list(CLASSES),
        palette(len(CLASSES)),
        "training scenes are drawn anew each epoch; validation scenes are fixed, of other digits and other ground",
        mirror=False,
        fresh=True,
    )


DIGIT_SCENES = Source(
    name="digit-scenes",
    forms=(
        (
            "digit-scenes",
            "drawn: handwritten digits of several sizes on photographs of brick, grass and gravel, 11 classes",
        ),
    ),
    needs="nothing (built in)",
    options=DrawnOptions,
    open=open_scenes,
)
