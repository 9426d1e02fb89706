"""What a segmentation run's report shows before the collapse of its backbone: examples, IoU by class, confusion."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepvit.report.sections import Picture, Section, jpeg_uri, png_uri
from deepvit.tasks.segmentation.confusion import Confusion, scores
from deepvit.tasks.segmentation.overlays import Strip, confusion_png

Array = np.ndarray[Any, Any]
EXAMPLES = 6
SMALL, WIDE = 160, 1200
"""Pixels: a part of a strip is enlarged to the one, a strip shrunk to the other."""


def of_images(
    batches: Iterable[tuple[Tensor, Tensor]],
    count: int,
    logits: Callable[[Tensor], Tensor],
    strip: Strip,
    facts: Mapping[str, Any],
) -> list[Section]:
    """All three sections, over all validation images.

    Args:
        batches: images [B, 3, H, W] and masks [B, H, W].
        count: images in all of them: examples are evenly spaced.
        logits: of images, [B, K, H, W].
        strip: (image, truth, prediction) → a picture uint8 [h, w, 3].
        facts: of the task: ``class_names``, ``palette`` and ``ignore_index``.
    """
    names, nothing = facts["class_names"], facts["ignore_index"]
    meter = Confusion(len(names), nothing, together=False)
    wanted = {round(i * (count - 1) / max(EXAMPLES - 1, 1)) for i in range(EXAMPLES)}
    strips: list[tuple[Array, str]] = []
    there: set[int] = set()
    seen = 0
    with torch.inference_mode():
        for images, masks in batches:
            output = logits(images)
            meter.update(output, masks)
            for i in range(len(images)):
                if seen + i in wanted:
                    one = Confusion(len(names), nothing, together=False)
                    one.update(output[i : i + 1], masks[i : i + 1])
                    share = scores(one.counts()).pixel_accuracy
                    caption = f"{len(strips) + 1}: {share:.1%} of its pixels right"
                    there |= {*np.flatnonzero(one.counts().sum(0)), *np.flatnonzero(one.counts().sum(1))}
                    strips.append((strip(images[i], masks[i], output[i].argmax(0)), caption))
            seen += len(images)
    matrix = meter.counts()
    return [
        example_section(strips, [(facts["palette"][i], names[i]) for i in sorted(there)]),
        class_section(matrix, names),
        confusion_section(confusion_png(matrix, names)),
    ]


def example_section(
    strips: Sequence[tuple[Array, str]], legend: Sequence[tuple[Sequence[int], str]]
) -> Section:
    """Strips of ``overlays.strip`` with their captions, and the classes in them by colour."""
    pictures = []
    for strip, caption in strips:
        image = Image.fromarray(strip)
        if image.height < SMALL:
            times = -(-SMALL // image.height)
            image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        photograph = image.width > WIDE
        image.thumbnail((WIDE, WIDE), Image.Resampling.LANCZOS)
        source = jpeg_uri(image) if photograph else png_uri(image)
        pictures.append(Picture(source, caption, image.width))
    intro = (
        "Validation images, evenly spaced: the image, the truth, what the network says, and where that is wrong (red). Grey "
        "pixels do not count."
    )
    return Section("examples", "What it says", intro, pictures, legend=legend)


def class_section(matrix: Array, names: Sequence[str]) -> Section:
    """IoU and accuracy by class, from the worst on, and what each is most often taken for."""
    found = scores(matrix)
    rows = []
    for i in np.argsort(np.nan_to_num(found.iou, nan=2.0), kind="stable"):
        wrong = matrix[i].copy()
        wrong[i] = 0
        taken = names[int(wrong.argmax())] if wrong.any() else "–"
        share = 100 * matrix[i].sum() / max(matrix.sum(), 1)
        rows.append([names[i], told(found.iou[i]), told(found.accuracy[i]), f"{share:.1f}", taken])
    left_out = [names[i] for i in range(len(names)) if np.isnan(found.iou[i])]
    intro = (
        f"mIoU {100 * found.miou:.2f}%, mean accuracy {100 * found.mean_accuracy:.2f}%, pixel accuracy "
        f"{100 * found.pixel_accuracy:.2f}%, over all validation images."
    )
    if left_out:
        intro += f" Left out of the mean, as neither truth nor prediction has them: {', '.join(left_out)}."
    headings = ("class", "IoU %", "accuracy %", "share of pixels %", "most often taken for")
    return Section("classes", "Class by class", intro, (), headings, rows)


def confusion_section(png: bytes) -> Section:
    """The picture of the confusion matrix."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return Section(
        "confusion",
        "Confusion",
        "",
        [Picture(source, "Each row is a class: what its pixels were taken for.", 720)],
    )


def told(value: float) -> str:
    """A share in percent, a dash where there is none."""
    return "–" if np.isnan(value) else f"{100 * value:.2f}"
