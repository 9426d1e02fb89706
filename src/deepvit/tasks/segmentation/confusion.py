"""The meter: one confusion matrix over all pixels that count, and the figures that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Scores:
    """Figures of a confusion matrix, in float64; NaN for a class that has none.

    Attributes:
        iou: by class: right pixels over those that are of the class or were taken for it; NaN where there are neither.
        accuracy: by class: share of its pixels that were found; NaN where it has no pixels.
        miou, mean_accuracy: their means over the classes that have one.
        pixel_accuracy: share of all pixels that are right.
    """

    iou: Array
    accuracy: Array

    miou: float
    mean_accuracy: float
    pixel_accuracy: float


def scores(matrix: Array) -> Scores:
    """From counts [K, K], rows the truth and columns the prediction."""
    counts = matrix.astype(np.float64)
    right, truth, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    union = truth + said - right
    iou = np.divide(right, union, out=np.full_like(right, np.nan), where=union > 0)
    accuracy = np.divide(right, truth, out=np.full_like(right, np.nan), where=truth > 0)
    total = counts.sum()
    return Scores(
        iou, accuracy, mean_of(iou), mean_of(accuracy), float(right.sum() / total) if total else 0.0
    )


def mean_of(values: Array) -> float:
    """Mean of what is no NaN; 0 where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def by_class(matrix: Array, names: Sequence[str]) -> dict[str, Any]:
    """``per_class`` IoU and accuracy in percent (None where a class has none), ``left_out``, and ``confusion``, as JSON."""
    found = scores(matrix)

    def percent(value: float) -> float | None:
        return None if np.isnan(value) else float(100 * value)

    return {
        "per_class": {
            name: {"iou": percent(iou), "accuracy": percent(accuracy)}
            for name, iou, accuracy in zip(names, found.iou, found.accuracy, strict=True)
        },
        "left_out": [name for name, iou in zip(names, found.iou, strict=True) if np.isnan(iou)],
        "confusion": matrix.tolist(),
    }


def class_rows(per_class: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of what ``by_class`` gave, the worst class first."""
    known = [(name, row["iou"], row["accuracy"]) for name, row in per_class.items() if row["iou"] is not None]
    rows = [
        [name, f"{iou:.2f}", "–" if accuracy is None else f"{accuracy:.2f}"]
        for name, iou, accuracy in sorted(known, key=lambda one: one[1])
    ]
    return ["class", "IoU %", "accuracy %"], rows


class Confusion(nn.Module):
    """Confusion matrix and cross-entropy over all pixels that count, all images and all processes.

    Args:
        classes: K.
        ignore_index: value of pixels that do not count.
        together: whether the figures are those of all processes, which then all ask for them; else of this one.
    """

    def __init__(self, classes: int, ignore_index: int, together: bool = True) -> None:
        super().__init__()
        self.classes, self.ignore_index = classes, ignore_index
        # Metrics of torchmetrics are modules: they move with the network and are summed over processes. Their check of
        # every value costs more than the count; a value beyond the classes fails in the count itself.
        self.matrix: Metric = MulticlassConfusionMatrix(
            classes, ignore_index=ignore_index, validate_args=False, sync_on_compute=together
        )
        exact = torch.float32 if torch.backends.mps.is_available() else torch.float64
        self.loss: Metric = SumMetric(sync_on_compute=together).set_dtype(exact)
        self.pixels: Metric = SumMetric(sync_on_compute=together).set_dtype(exact)

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Logits or log-probabilities [B, K, H, W] and classes [B, H, W]."""
        self.matrix.update(output.argmax(1), targets)
        total = F.cross_entropy(
            output.float(), targets.long(), ignore_index=self.ignore_index, reduction="sum"
        )
        self.loss.update(total)
        self.pixels.update((targets != self.ignore_index).sum())

    def counts(self) -> Array:
        """The matrix, int64 [K, K], rows the truth."""
        return np.asarray(self.matrix.compute().cpu())

    def compute(self) -> dict[str, float]:
        """The columns of the task; accuracies and IoU in percent."""
        found = scores(self.counts())
        return {
            "miou": 100 * found.miou,
            "mean_accuracy": 100 * found.mean_accuracy,
            "pixel_accuracy": 100 * found.pixel_accuracy,
            "loss": float(self.loss.compute()) / max(float(self.pixels.compute()), 1.0),
        }

    def reset(self) -> None:
        """Start anew."""
        for metric in (self.matrix, self.loss, self.pixels):
            metric.reset()
