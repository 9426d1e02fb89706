"""How an image file becomes what a network takes, as steps that a program without torch can follow.

The words are those of ``model.json`` beside an exported network; what they say is what ``transform_of`` does, and a test
follows them with Pillow and NumPy.
"""

from __future__ import annotations

import math
from typing import Any

from deepvit.data.inputs import InputSpec

Step = dict[str, Any]

OPENED: Step = {
    "do": "open",
    "how": "the first frame, turned upright by its EXIF orientation, as 8-bit RGB; what is transparent lies on white",
}
CHANNELS: Step = {
    "do": "arrange",
    "how": "float32 [batch, channel, height, width], channels in the order red, green, blue",
}


def cropped(spec: InputSpec) -> list[Step]:
    """Steps of a classifier: resized, the middle cut out, scaled and normalised."""
    height, width = (math.floor(side / spec.crop) for side in spec.hw)
    if height == width:
        resized = short_side(height, spec.interpolation)
    else:
        resized = {
            "do": "resize_to_cover", "height": height, "width": width, "interpolation": spec.interpolation,
            "size": "ratio = min(image height / height, image width / width); each side round(side / ratio)",
        }  # fmt: skip
    crop: Step = {
        "do": "crop_center", "height": spec.height, "width": spec.width,
        "from": "top = round((image height - height) / 2), left = round((image width - width) / 2)",
    }  # fmt: skip
    return [OPENED, resized, crop, *values(spec)]


def whole(spec: InputSpec, short: int | None) -> list[Step]:
    """Steps of a network of whole images: of their own size, or with a short side of so many pixels."""
    if short is None:
        return [OPENED, *values(spec)]
    rule = "each side round(side * pixels / shorter), at least 1 (of two whole numbers as near, the even one)"
    return [OPENED, short_side(short, spec.interpolation, "round", rule), *values(spec)]


CUT_OFF = (
    "the longer side int(pixels * longer / shorter); an image whose shorter side has them stays as it is"
)


def short_side(pixels: int, interpolation: str, longer: str = "int", rule: str = CUT_OFF) -> Step:
    """The shorter side gets so many pixels, the longer one in proportion, its fraction cut off (int) or rounded (round)."""
    return {
        "do": "resize_short_side", "pixels": pixels, "interpolation": interpolation, "longer": longer, "size": rule,
    }  # fmt: skip


def values(spec: InputSpec) -> list[Step]:
    """From bytes to normalised numbers."""
    return [
        {"do": "divide", "by": 255},
        {"do": "normalize", "mean": list(spec.mean), "std": list(spec.std), "how": "(value - mean) / std"},
        CHANNELS,
    ]
