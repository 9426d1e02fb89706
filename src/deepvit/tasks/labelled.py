"""What tasks with named classes have in common: at least two of them, and batches in the network's own numbering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deepvit.data import InputSpec, Loaders
from deepvit.errors import UserError
from deepvit.tasks.task import Settings


def several(data: Any) -> Any:
    """The data, if there is something to tell apart in it.

    Raises:
        UserError: it has one class.
    """
    if data.num_classes < 2:
        raise UserError(
            f"{data.spec} has one class only ({data.class_names[0]}): there is nothing to tell apart"
        )
    return data


def numbers_of(data: Any, names: Sequence[str]) -> Tensor:
    """The number that each class of the data has among the classes of a network: int64 [classes of the data].

    Args:
        data: any data set of the task, with some of the network's classes in any order.
        names: classes of the network.

    Raises:
        UserError: a class that the network does not know.
    """
    places = {name: number for number, name in enumerate(names)}
    for name in data.class_names:
        if name not in places:
            raise UserError(
                f"class {name!r} of {data.spec} is not one of the {len(names)} classes that the run was trained on"
            )
    return torch.tensor([places[name] for name in data.class_names])


def loaders_of(
    data: Any, input: InputSpec, settings: Settings, kind: type[Loaders] = Loaders, **more: Any
) -> Loaders:
    """The data room's loaders, as the settings of a run want them; ``more``: arguments that the task decides."""
    return kind(
        data,
        input=input,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=settings.seed,
        max_train_images=settings.max_train_images,
        max_val_images=settings.max_val_images,
        unreadable=settings.unreadable,
        progress=settings.progress,
        **more,
    )


def validated(loaders: Loaders, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Validation batches with targets in the network's numbering; ``numbers``: by target."""
    loaders.setup("validate")
    try:
        for images, targets in loaders.val_dataloader():
            yield images, numbers[targets.cpu()]
    finally:
        loaders.teardown()
