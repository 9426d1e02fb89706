"""Masks as pictures: index and colour PNG, laid over their image, where they are wrong, and the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepvit.data import InputSpec
from deepvit.files import write_atomic

Array = np.ndarray[Any, Any]
Strip = Callable[[Tensor, Tensor, Tensor], Array]
"""(image, truth, prediction) → a picture uint8 [h, w, 3]."""
SHOWN, LARGEST = 4, 256
"""Images of a batch that TensorBoard shows, and about how many rows of each."""
STRENGTH = 0.55
"""Share of a class's colour over the image."""
RIGHT, WRONG, NOTHING = (70, 150, 90), (214, 50, 60), (90, 90, 90)
"""Colours of pixels that are right, wrong, and do not count."""


def shown(image: Tensor, input: InputSpec) -> Array:
    """A normalised image [3, H, W] as it was: uint8 [H, W, 3]."""
    pixels = image.detach().float().cpu().numpy().transpose(1, 2, 0) * input.std + input.mean
    result: Array = (255 * pixels).round().clip(0, 255).astype(np.uint8)
    return result


def coloured(mask: Array, palette: Sequence[Sequence[int]]) -> Array:
    """Classes [H, W] as colours uint8 [H, W, 3]; what is no class is grey."""
    table = np.array([*palette, NOTHING], dtype=np.uint8)
    known = np.where((mask >= 0) & (mask < len(palette)), mask, len(palette))
    result: Array = table[known]
    return result


def overlaid(image: Array, mask: Array, palette: Sequence[Sequence[int]]) -> Array:
    """The colours of a mask laid over its image; what is no class shows the image alone."""
    colours = coloured(mask, palette).astype(np.float32)
    mixed = image + STRENGTH * (colours - image)
    known = ((mask >= 0) & (mask < len(palette)))[..., None]
    result: Array = np.where(known, mixed, image).round().astype(np.uint8)
    return result


def mistakes(truth: Array, said: Array, ignore_index: int) -> Array:
    """Where a prediction is wrong: uint8 [H, W, 3]."""
    right, wrong = np.array([RIGHT, WRONG], dtype=np.uint8)
    result: Array = np.where((truth == said)[..., None], right, wrong)
    result[truth == ignore_index] = NOTHING
    return result


def strip(
    image: Array, truth: Array, said: Array, palette: Sequence[Sequence[int]], ignore_index: int
) -> Array:
    """Image, truth, prediction, and where it is wrong, side by side: uint8 [H, 4·W + 3·gap, 3]."""
    gap = np.full((len(image), max(2, image.shape[1] // 48), 3), 255, dtype=np.uint8)
    parts = [
        image,
        overlaid(image, truth, palette),
        overlaid(image, said, palette),
        mistakes(truth, said, ignore_index),
    ]
    return np.concatenate([part for one in parts for part in (one, gap)][:-1], axis=1)


def strips(input: InputSpec, palette: Sequence[Sequence[int]], ignore_index: int) -> Strip:
    """``strip`` of tensors: of an image [3, H, W] as the network takes it, and classes [H, W]."""

    def draw(image: Tensor, truth: Tensor, said: Tensor) -> Array:
        return strip(shown(image, input), truth.cpu().numpy(), said.cpu().numpy(), palette, ignore_index)

    return draw


def examples(draw: Strip) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What makes one picture uint8 [3, h, w] of a batch: the first images, one below the other."""

    def grid(images: Tensor, output: Tensor, targets: Tensor) -> Tensor:
        step = max(1, images.shape[-2] // LARGEST)
        images, output, targets = (x[:SHOWN, ..., ::step, ::step] for x in (images, output, targets))
        rows = [draw(*one) for one in zip(images, targets, output.argmax(1), strict=True)]
        return torch.from_numpy(np.concatenate(rows)).permute(2, 0, 1)

    return grid


def write_masks(
    folder: Path, stem: str, image: Array, mask: Array, palette: Sequence[Sequence[int]]
) -> dict[str, str]:
    """Write ``STEM.png`` (classes), ``STEM-colour.png`` and ``STEM-overlay.png``; returns their paths by kind.

    Classes are 8 bits, 16 where there are more than 256.
    """
    index = Image.fromarray(mask.astype(np.uint8 if len(palette) <= 256 else np.uint16))
    pictures = {
        "mask": (f"{stem}.png", index),
        "colour": (f"{stem}-colour.png", Image.fromarray(coloured(mask, palette))),
        "overlay": (f"{stem}-overlay.png", Image.fromarray(overlaid(image, mask, palette))),
    }
    found = {}
    for kind, (name, picture) in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        found[kind] = str(write_atomic(folder / name, stream.getvalue()))
    return found


def confusion_png(matrix: Array, names: Sequence[str]) -> bytes:
    """The confusion matrix as a PNG: share of each class's pixels (a row) by what they were taken for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    count = len(names)
    side = min(12.0, 2.2 + 0.34 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = axes.imshow(100 * share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axes, label="% of the class's pixels", fraction=0.046)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    size = 8 if count <= 30 else max(2.5, 240 / count)
    axes.set_xticks(range(count), names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), names, fontsize=size)
    if count <= 20:
        for row in range(count):
            for column in range(count):
                value = 100 * share[row, column]
                if value >= 0.5:
                    colour = "white" if value > 55 else "black"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()
