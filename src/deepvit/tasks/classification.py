"""Classification: one label an image, cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from deepvit.data import (
    AugmentConfig,
    DataOptions,
    ImageData,
    InputSpec,
    Loaders,
    open_data,
    read_image,
    table,
)
from deepvit.data.augmentation import resolve
from deepvit.data.checking import DataCheck, check_classification
from deepvit.data.transforms import transform_of
from deepvit.errors import UserError
from deepvit.losses import PatchMix
from deepvit.tasks.labelled import loaders_of, numbers_of, several, validated
from deepvit.tasks.task import Column, Criterion, Fitting, Mixed, Settings, Task
from deepvit.terminal import print_table, say

WORST = 20
"""Classes shown in the terminal, from the worst on."""


@dataclass
class PredictOptions:
    """Options of ``deepvit predict`` for a classifier."""

    topk: int = 3
    """Labels an image."""

    def __post_init__(self) -> None:
        """Refuse no label at all."""
        if self.topk < 1:
            raise UserError(f"topk={self.topk} must be at least 1")


class Accuracy(nn.Module):
    """Top-1 and top-5 accuracy in percent, cross-entropy, and accuracy by class, over all images and processes.

    Of five classes or fewer the right one is always among the best five: that figure says nothing and is not given.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        # Metrics of torchmetrics are modules: they move with the network and are summed over processes.
        self.top1: Metric = MulticlassAccuracy(classes, average="micro")
        self.top5: Metric | None = (
            MulticlassAccuracy(classes, average="micro", top_k=5) if classes > 5 else None
        )
        self.by_class: Metric = MulticlassAccuracy(classes, average="none")
        self.loss: Metric = MeanMetric()

    def update(self, output: Tensor, targets: Tensor) -> None:
        """Logits [B, K] and labels [B]."""
        logits = output.float()
        for metric in (self.top1, self.top5, self.by_class):
            if metric is not None:
                metric.update(logits, targets)
        self.loss.update(F.cross_entropy(logits, targets), weight=len(targets))

    def compute(self) -> dict[str, float]:
        """The columns of the task that say something of so many classes."""
        return {
            "top1": 100 * float(self.top1.compute()),
            **({} if self.top5 is None else {"top5": 100 * float(self.top5.compute())}),
            "loss": float(self.loss.compute()),
        }

    def reset(self) -> None:
        """Start anew."""
        for metric in (self.top1, self.top5, self.by_class, self.loss):
            if metric is not None:
                metric.reset()


class Classification(Task):
    """Images with one of ``facts["class_names"]`` each."""

    name = "classification"
    help = "one label an image"
    columns = (
        Column("top1", "top-1 accuracy %", "top-1", unit="%"),
        Column("top5", "top-5 accuracy %", "top-5", unit="%"),
        Column("loss", "validation loss", "loss", digits=4, better="lower"),
    )
    watch = "top1"
    predict_options = PredictOptions

    # -- data --------------------------------------------------------------------------------------

    @classmethod
    def open(cls, spec: str, source: DataOptions, options: Any = None) -> ImageData:
        """A data set of labelled images; its own split, whatever the seed of a run: runs stay comparable."""
        data: ImageData = several(open_data(spec, source))
        return data

    @classmethod
    def sources(cls) -> list[dict[str, str]]:
        """Folders, archives, hubs and what is built in."""
        return table()

    @classmethod
    def open_unchecked(cls, spec: str, source: DataOptions) -> ImageData:
        """One class is no mistake of the files."""
        return open_data(spec, source)

    @classmethod
    def check(cls, data: Any, progress: Callable[[int], None]) -> DataCheck:
        """Unreadable files, the same image in both parts, imbalance, odd sizes."""
        return check_classification(data, progress=progress)

    @classmethod
    def facts_of(cls, data: Any, options: Any) -> dict[str, Any]:
        """The names of the classes, by label."""
        return {"class_names": list(data.class_names)}

    def told_facts(self) -> str:
        """``10 classes``."""
        return f"{self.width} classes"

    @property
    def labels(self) -> Sequence[str]:
        """The names of the classes."""
        return list(self.facts["class_names"])

    @property
    def width(self) -> int:
        """How many classes there are."""
        return len(self.labels)

    # -- training ----------------------------------------------------------------------------------

    def fitting(self, data: Any, input: InputSpec, network: nn.Module, settings: Settings) -> Fitting:
        """Batches with Mixup and CutMix of the data room, or with patch-aligned mixing for the mixing loss."""
        augment, mix = settings.augment, None
        if settings.losses.get("patch_mixing"):
            resolved = resolve(augment, side=min(input.hw), mirror=data.mirror)
            mix = self.patch_mix(network, input, resolved)
            # What it does takes the place of mixing whose rectangles cut through patches.
            augment = dataclasses.replace(augment, mixup=0.0, cutmix=0.0)
        loaders = self.loaders(data, input, settings, augment)
        return Fitting(loaders, criterion(loaders.label_smoothing), mix)

    def loaders(self, data: Any, input: InputSpec, settings: Settings, augment: AugmentConfig) -> Loaders:
        """The data room's loaders of labelled images."""
        return loaders_of(data, input, settings, augment=augment)

    def patch_mix(
        self, network: nn.Module, input: InputSpec, augment: AugmentConfig
    ) -> Callable[[Tensor, Any], Mixed]:
        """CutMix along the patch grid, and Mixup as in ``augment``, for the mixing loss.

        Args:
            network: any timm ViT or Swin; the side of a token of its last block is read from ``feature_info``.
            input: the images.
            augment: resolved options; ``cutmix`` 0 means the usual alpha of 1 here, as the loss needs cut images.

        Raises:
            UserError: a model that does not say the size of its tokens, or one that does not divide the images.
        """
        info = getattr(network, "feature_info", None)
        if not info:
            raise UserError(
                f"patch_mixing needs the size of a patch, which {type(network).__name__} does not say"
            )
        side = int(info[-1]["reduction"])
        if input.height % side or input.width % side:
            raise UserError(
                f"patch_mixing: patches of {side} pixels do not divide images of {input.height}: change --model.img_size"
            )
        mixing = PatchMix(
            side,
            self.width,
            cutmix_alpha=augment.cutmix or 1.0,
            mixup_alpha=augment.mixup or 0.0,
            prob=augment.mixup_prob,
            switch_prob=augment.mixup_switch_prob,
            label_smoothing=augment.label_smoothing or 0.0,
            pairs="mirrored",  # the same in several processes as in one: see TrainPlan
        )

        def mix(images: Tensor, targets: Any) -> Mixed:
            mixed = mixing(images, targets)
            return Mixed(mixed.images, mixed.targets, mixed.patches)

        return mix

    # -- measuring and using -----------------------------------------------------------------------

    def validation(self, data: Any, input: InputSpec, settings: Settings) -> Iterable[tuple[Tensor, Tensor]]:
        """Validation batches with labels of this network's classes, whichever of them the data has."""
        numbers = numbers_of(data, self.labels)
        return validated(self.loaders(data, input, settings, settings.augment), numbers)

    def meter(self) -> Accuracy:
        """Accuracy over all classes of the network."""
        return Accuracy(self.width)

    def detail(self, meter: Any, data: Any) -> dict[str, Any]:
        """``per_class``: accuracy in percent of each class that the data has."""
        values = dict(zip(self.labels, (100 * meter.by_class.compute()).tolist(), strict=True))
        return {"per_class": {name: values[name] for name in self.labels if name in set(data.class_names)}}

    @classmethod
    def show_detail(cls, result: Mapping[str, Any]) -> None:
        """The classes from worst to best."""
        worst = sorted(result["per_class"].items(), key=lambda item: item[1])[:WORST]
        print_table(["class", "accuracy %"], [[name, f"{value:.2f}"] for name, value in worst])
        if len(result["per_class"]) > WORST:
            say(f"the {WORST} worst of {len(result['per_class'])} classes; all are in the JSON of --out")

    def predict(
        self,
        network: nn.Module,
        images: Sequence[Path],
        input: InputSpec,
        options: Any,
        infer: Any,
        out: Path | None,
    ) -> Iterator[dict[str, Any]]:
        """``labels`` of each image, most probable first."""
        transform = transform_of(input)
        for path in images:
            read_image(path).close()  # all are looked at first: a bad name should not end half a listing
        where = next(network.parameters()).device
        for path in images:
            tensor: Tensor = transform(read_image(path))
            probabilities = network(tensor[None].to(where)).float().softmax(-1)[0].cpu()
            best = probabilities.topk(min(options.topk, self.width))
            labels = [
                {"label": self.labels[i], "probability": float(p)}
                for p, i in zip(best.values, best.indices.tolist(), strict=True)
            ]
            yield {"image": str(path), "labels": labels}

    def told(self, row: Mapping[str, Any]) -> str:
        """``apple 97.1%, leaf 2.9%``."""
        return ", ".join(f"{x['label']} {100 * x['probability']:.1f}%" for x in row["labels"])


def criterion(label_smoothing: float) -> Criterion:
    """Cross-entropy in float32 against hard labels [B] (smoothed here) or soft ones [B, K]."""

    def terms(output: Tensor, targets: Tensor) -> dict[str, Tensor]:
        if targets.ndim == 2:
            return {"cross_entropy": F.cross_entropy(output.float(), targets.to(torch.float32))}
        return {"cross_entropy": F.cross_entropy(output.float(), targets, label_smoothing=label_smoothing)}

    return terms
