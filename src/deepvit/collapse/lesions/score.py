"""Accuracy with lesions, where there are labels: a task's own meter, or the usual one for what is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Meter(Protocol):
    """Takes in the network's outputs with their targets, chunk by chunk, and gives figures by name."""

    def update(self, output: Any, targets: Any) -> None:
        """A chunk of images."""

    def compute(self) -> dict[str, float]:
        """The figures so far."""


@dataclass(frozen=True)
class Score:
    """How good an answer is, by labels; higher is better.

    Attributes:
        name: what people call it, as "accuracy" or "mIoU"; in percent.
        meter: makes a fresh meter.
        key: which of the meter's figures it is.
    """

    name: str
    meter: Callable[[], Meter]
    key: str


class Accuracy:
    """Share of images whose first answer is the label, in percent: logits [B, K], labels [B]."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, output: Tensor, targets: Tensor) -> None:
        """A chunk of images."""
        self.right += int((output.argmax(1) == targets.to(output.device)).sum())
        self.count += len(targets)

    def compute(self) -> dict[str, float]:
        """``accuracy``."""
        return {"accuracy": 100 * self.right / max(1, self.count)}


class MeanIoU:
    """Intersection over union, mean over the classes that occur, in percent: logits [B, K, h, w], masks [B, H, W].

    Logits are resized to the masks (bilinear); targets outside of 0 … K − 1 are left out.
    """

    def __init__(self) -> None:
        self.confusion: Tensor | None = None

    def update(self, output: Tensor, targets: Tensor) -> None:
        """A chunk of images."""
        classes = output.shape[1]
        if output.shape[-2:] != targets.shape[-2:]:
            output = torch.nn.functional.interpolate(output.float(), targets.shape[-2:], mode="bilinear")
        told, true = output.argmax(1).flatten().cpu(), targets.flatten().cpu().long()
        valid = (true >= 0) & (true < classes)
        counts = torch.bincount(true[valid] * classes + told[valid], minlength=classes**2)
        square = counts.view(classes, classes)
        self.confusion = square if self.confusion is None else self.confusion + square

    def compute(self) -> dict[str, float]:
        """``mIoU``."""
        if self.confusion is None:
            return {"mIoU": 0.0}
        table = self.confusion.double()
        union = table.sum(0) + table.sum(1) - table.diag()
        return {"mIoU": float(100 * (table.diag() / union)[union > 0].mean())}


ACCURACY = Score("accuracy", Accuracy, "accuracy")
MIOU = Score("mIoU", MeanIoU, "mIoU")


def usual_score(task: str, targets: Any) -> Score | None:
    """The usual score for whole-number targets of the shape that the task has; None where they are no labels."""
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    wanted = {"classification": (1, ACCURACY), "dense": (3, MIOU)}.get(task)
    return wanted[1] if wanted and targets.ndim == wanted[0] else None
