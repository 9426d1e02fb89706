"""A third task in one file: one number an image. Nothing of the package knows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError

from deepvit.data import DataOptions, InputSpec, Loaders, open_data, read_image
from deepvit.data.transforms import transform_of
from deepvit.tasks import Column, Fitting, Settings, Task


@dataclass
class Options:
    """Options of this task."""

    largest: float = 9.0
    """Label that becomes the number 1."""


class Error(nn.Module):
    """Mean absolute error."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest, self.error = largest, MeanAbsoluteError()

    def update(self, output: Tensor, targets: Tensor) -> None:
        self.error.update(output.float()[:, 0] * self.largest, targets.float())

    def compute(self) -> dict[str, float]:
        return {"mae": float(self.error.compute())}

    def reset(self) -> None:
        self.error.reset()


class Regression(Task):
    """The digit as a number."""

    name = "regression"
    help = "one number an image"
    columns = (Column("mae", "mean absolute error", "mae", digits=3, better="lower"),)
    watch = "mae"
    options = Options

    @classmethod
    def open(cls, spec: str, source: DataOptions, options: Any = None) -> Any:
        return open_data(spec, source)

    @classmethod
    def facts_of(cls, data: Any, options: Any) -> dict[str, Any]:
        return {"largest": options.largest}

    @property
    def width(self) -> int:
        return 1

    def fitting(self, data: Any, input: InputSpec, network: nn.Module, settings: Settings) -> Fitting:
        def criterion(output: Tensor, targets: Tensor) -> dict[str, Tensor]:
            return {"squared_error": F.mse_loss(output.float()[:, 0], targets / self.facts["largest"])}

        return Fitting(self.loaders(data, input, settings), criterion)

    def loaders(self, data: Any, input: InputSpec, settings: Settings) -> Loaders:
        return Loaders(
            data, input=input, batch_size=settings.batch_size, augment=settings.augment, seed=settings.seed,
            max_train_images=settings.max_train_images, max_val_images=settings.max_val_images, progress=False,
        )  # fmt: skip

    def validation(self, data: Any, input: InputSpec, settings: Settings) -> Iterable[tuple[Tensor, Any]]:
        loaders = self.loaders(data, input, settings)
        loaders.setup("validate")
        return loaders.val_dataloader()

    def meter(self) -> Error:
        return Error(self.facts["largest"])

    def predict(
        self,
        network: nn.Module,
        images: Sequence[Path],
        input: InputSpec,
        options: Any,
        infer: Any,
        out: Path | None,
    ) -> Iterator[dict[str, Any]]:
        for path in images:
            with torch.inference_mode():
                number = (
                    float(network(transform_of(input)(read_image(path))[None])[0, 0]) * self.facts["largest"]
                )
            yield {"image": str(path), "number": number}

    def told(self, row: Mapping[str, Any]) -> str:
        return f"{row['number']:.2f}"
