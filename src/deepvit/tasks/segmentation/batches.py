"""Batches of images with masks: for training, for figures over all processes, and for one process alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepvit.data import InputSpec, Loaders
from deepvit.data.sets import Subset
from deepvit.data.split import evenly_spaced
from deepvit.tasks.labelled import loaders_of, numbers_of, validated
from deepvit.tasks.segmentation.choices import SegmentOptions
from deepvit.tasks.task import Settings

AT_ONCE = 2**21
"""Pixels of a validation batch at most: logits of 150 classes for so many take 1.3 GB."""
LOOKED_AT = 16
"""Validation images whose size is looked at to choose the batch."""


def mask_loaders(data: Any, input: InputSpec, settings: Settings, kind: type[Loaders] = Loaders) -> Loaders:
    """The data room's loaders, with joint transforms of image and mask."""
    own: SegmentOptions = settings.options
    known = evenly_spaced(len(data.val), LOOKED_AT)
    sizes = [data.val.size(i) for i in (range(len(data.val)) if known is None else known.tolist())]
    largest = max(height * width for height, width in sizes)
    return loaders_of(
        data,
        input,
        settings,
        kind,
        eval_batch_size=max(1, min(settings.batch_size, AT_ONCE // largest)),
        transforms=data.transforms(own.scene, input),
    )


def mask_batches(
    data: Any,
    input: InputSpec,
    settings: Settings,
    names: Sequence[str],
    nothing: int,
    kind: type[Loaders] = Loaders,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Validation batches whose masks have a network's classes.

    Args:
        data, input, settings, kind: as for ``mask_loaders``.
        names: classes of the network.
        nothing: value, in the network's numbering, of pixels that do not count.

    Raises:
        UserError: a class that the network does not know.
    """
    own = numbers_of(data, names)
    numbers = torch.full((max(data.ignore_index, len(own)) + 1,), nothing)
    numbers[: len(own)] = own
    return validated(mask_loaders(data, input, settings, kind), numbers)


class Alone(Loaders):
    """Loaders of a process that does not share its images with others: they have gone on, or wait."""

    def process(self) -> tuple[int, int]:
        """The first of one."""
        return 0, 1


class Pictures(Subset):
    """Images of a set of pairs, without what belongs to them."""

    def target(self, index: int) -> int:
        """The label: none."""
        return int(self.targets[index])
