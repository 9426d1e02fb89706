"""What a written file answers, beside what the network itself answers in torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from deepvit.data import InputSpec
from deepvit.data.transforms import transform_of
from deepvit.errors import UserError
from deepvit.exporting.formats import Answer

TOLERANCE = 1e-4
"""Of the largest logit where that is above 1, else of 1."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A batch that was compared.

    Attributes:
        images: "photograph" or "noise".
        shape: of the batch.
        difference: the largest, of all outputs.
        largest: the largest output, by its size.
    """

    images: str
    shape: tuple[int, ...]
    difference: float
    largest: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance; never of NaN."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


def batches(spec: InputSpec, sizes: Sequence[Size]) -> Iterator[tuple[str, Tensor]]:
    """Two batch sizes at every size of images: one photograph, and three images of noise."""
    for size in sizes:
        yield "photograph", photograph(dataclasses.replace(spec, size=size))
        random = torch.Generator().manual_seed(sum(size))
        yield "noise", torch.randn(3, len(spec.mean), *size, generator=random)


def photograph(spec: InputSpec) -> Tensor:
    """A photograph that comes with scikit-image, prepared for the network: [1, C, H, W]."""
    from skimage import data  # half a second of import time

    colour = dataclasses.replace(spec, mean=(spec.mean * 3)[:3], std=(spec.std * 3)[:3])
    image: Tensor = transform_of(colour)(Image.fromarray(data.astronaut()))
    wanted = len(spec.mean)
    return image.repeat(-(-wanted // 3), 1, 1)[None, :wanted].contiguous()


@torch.no_grad()
def compare(network: nn.Module, answer: Answer, spec: InputSpec, sizes: Sequence[Size]) -> list[Case]:
    """Ask both about the same batches.

    Raises:
        UserError: a batch whose answers differ by more than the tolerance, are not of one shape, or are not finite.
    """
    cases = []
    for name, images in batches(spec, sizes):
        wanted, got = network(images), answer(images)
        where = f"{name} of {'×'.join(map(str, images.shape))}"
        if got.shape != wanted.shape:
            raise UserError(f"{where}: the file gives {tuple(got.shape)}, the network {tuple(wanted.shape)}")
        if not wanted.isfinite().all():
            raise UserError(f"{where}: the network's own answer is not finite, so nothing can be compared")
        difference = (got.double() - wanted.double()).abs().max().item()
        case = Case(name, tuple(images.shape), difference, wanted.abs().max().item())
        if not case.agrees:
            raise UserError(
                f"{where}: the file and the network differ by {difference:.2g} (logits up to {case.largest:.2g}), "
                f"more than {TOLERANCE:g}"
            )
        cases.append(case)
    return cases


def shape_told(network: nn.Module, channels: int, sizes: Sequence[Size]) -> list[int | str]:
    """The shape of the output in words and numbers: ["batch", 10], ["batch", 11, "height", "width"].

    Raises:
        UserError: an output that is no single tensor, or whose shape follows the images in another way.
    """
    shapes = []
    for count, size in ((2, sizes[0]), (3, sizes[-1])):
        with torch.no_grad():
            output: Any = network(torch.zeros(count, channels, *size))
        if not isinstance(output, Tensor):
            raise UserError(f"it gives {type(output).__name__} and no single tensor")
        known = {"batch": count, "height": size[0], "width": size[1]}
        shapes.append((known, tuple(output.shape)))
    (first, one), (second, other) = shapes
    if len(one) != len(other) or one[:1] != (2,) or other[:1] != (3,):
        raise UserError(f"its output {one} does not begin with the batch of 2")
    told: list[int | str] = ["batch"]
    for place in range(1, len(one)):
        moving = [
            name for name in ("height", "width") if (one[place], other[place]) == (first[name], second[name])
        ]
        # A fixed size is written as the number that it is.
        if one[place] == other[place]:
            told.append(one[place])
        elif moving:
            told.append(moving[min(place == len(one) - 1, len(moving) - 1)])
        else:
            told.append("follows the images")
    return told
