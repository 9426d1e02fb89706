"""What a trained network says of photographs: shares of the classes, and masks as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from deepvit.data import InputSpec, read_image
from deepvit.errors import UserError
from deepvit.masks.transforms import ShortSide
from deepvit.tasks.segmentation import overlays

Array = np.ndarray[Any, Any]


def predicted(
    logits: Callable[[Tensor], Tensor],
    images: Sequence[Path],
    input: InputSpec,
    facts: dict[str, Any],
    out: Path | None,
) -> Iterator[dict[str, Any]]:
    """A row an image: ``shares`` of the classes in percent of its pixels and, with ``out``, the paths of its masks.

    Args:
        logits: of images [1, 3, H, W].
        images: files; all are looked at first, since a bad name should not end half a listing.
        input: mean and deviation of the images.
        facts: of the task: ``class_names``, ``palette`` and ``short_side``.
        out: folder for masks, or None.

    Raises:
        UserError: an image that cannot be read, or ``out`` is the name of a file.
    """
    if out is not None and out.suffix:
        raise UserError(f"--out {out} is a file; masks are written into a folder")
    for path in images:
        read_image(path).close()
    names = facts["class_names"]
    for path, stem in zip(images, stems(images), strict=True):
        picture = read_image(path)
        said = classes_of(logits, picture, input, facts["short_side"])
        counts = np.bincount(said.flatten(), minlength=len(names))
        shares = {names[i]: float(100 * counts[i] / said.size) for i in np.argsort(-counts) if counts[i]}
        row: dict[str, Any] = {"image": str(path), "shares": shares}
        if out is not None:
            row |= overlays.write_masks(out, stem, np.asarray(picture), said, facts["palette"])
        yield row


def classes_of(
    logits: Callable[[Tensor], Tensor], picture: Any, input: InputSpec, short_side: int | None
) -> Array:
    """The class of every pixel of a photograph, [H, W]; ``short_side`` scales what the network sees, as in training."""
    height, width = picture.height, picture.width
    found = logits(seen(picture, input, short_side)[None])
    if found.shape[-2:] != (height, width):
        found = F.interpolate(found, (height, width), mode="bilinear", align_corners=False)
    said: Array = found[0].argmax(0).cpu().numpy()
    return said


def seen(picture: Any, input: InputSpec, short_side: int | None) -> Tensor:
    """What the network sees of a photograph, float32 [3, h, w] normalised: the tensor of the evaluation."""
    image = tv_tensors.Image(tvf.pil_to_tensor(picture))
    if short_side is not None:
        image = ShortSide(short_side, InterpolationMode(input.interpolation))(image)
    pixels = image.as_subclass(Tensor).to(torch.float32) / 255.0
    normal: Tensor = tvf.normalize(pixels, list(input.mean), list(input.std))
    return normal


def stems(images: Sequence[Path]) -> list[str]:
    """A name for each image's masks: its own without ending, with its number where two are called alike."""
    plain = [path.stem for path in images]
    return [stem if plain.count(stem) == 1 else f"{stem}-{i}" for i, stem in enumerate(plain)]
