"""Using a finished run: accuracy on a data set, labels of photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from deepvit.data import InputSpec, open_data, read_image
from deepvit.data.transforms import transform_of
from deepvit.errors import UserError
from deepvit.files import write_json
from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import ImageDataModule
from deepvit.training.deploy import ModelCard, load_deployed, pick_device


def evaluate(
    run: str,
    data: str | None = None,
    batch_size: int = 128,
    device: str = "auto",
    workers: int | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Measure the deployed model of a run on the validation images of a data set.

    Args:
        run: run folder.
        data: data set (as for train); by default the one that the run was trained on.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, mps.
        workers: processes that load large images.
        out: a JSON file for the result.

    Returns:
        ``top1`` and ``top5`` in percent, ``loss``, ``images``, and accuracy per class.

    Raises:
        UserError: no finished run there, or classes that the run does not know.
    """
    model, card = load_deployed(run, pick_device(device))
    spec = data if data is not None else TrainConfig.from_yaml(Path(run) / "config.yaml").data
    module = datamodule_for(card, spec, batch_size, workers)
    wanted = torch.tensor([class_index(card, name, spec) for name in module.class_names])
    count = card.num_classes
    meter = MetricCollection(
        {
            "top1": MulticlassAccuracy(count, average="micro"),
            "top5": MulticlassAccuracy(count, average="micro", top_k=min(5, count)),
            "per_class": MulticlassAccuracy(count, average="none"),
        }
    )
    mean_loss, images = MeanMetric(), 0
    where = next(model.parameters()).device
    with torch.inference_mode():
        for batch in module.val_dataloader():
            logits = model(batch[0].to(where, non_blocking=True)).float().cpu()
            targets = wanted[batch[1].cpu()]
            meter.update(logits, targets)
            mean_loss.update(torch.nn.functional.cross_entropy(logits, targets), weight=len(targets))
            images += len(targets)
    values = meter.compute()
    present = {card.class_names[i] for i in wanted.tolist()}
    result = {
        "run": str(run),
        "data": spec,
        "images": images,
        "top1": 100 * float(values["top1"]),
        "top5": 100 * float(values["top5"]),
        "loss": float(mean_loss.compute()),
        "per_class": {
            name: 100 * float(value)
            for name, value in zip(card.class_names, values["per_class"], strict=True)
            if name in present
        },
    }
    if out is not None:
        write_json(out, result)
    return result


def datamodule_for(card: ModelCard, spec: str, batch_size: int, workers: int | None) -> ImageDataModule:
    """The data set ``spec`` as the model of ``card`` takes it."""
    module = ImageDataModule(open_data(spec), batch_size=batch_size, workers=workers, **input_options(card))
    module.setup("validate")
    return module


def input_options(card: ModelCard) -> dict[str, Any]:
    """The input of a card in the names of the data room."""
    fields = card.input
    spec = InputSpec(
        card.img_size, fields["mean"], fields["std"], fields["interpolation"], fields["crop_pct"]
    )
    return {"input": spec}


def class_index(card: ModelCard, name: str, spec: str) -> int:
    """Index of a class in the model's classifier.

    Raises:
        UserError: the model was not trained on that class.
    """
    if name not in card.class_names:
        raise UserError(
            f"class {name!r} of {spec} is not one of the {card.num_classes} classes that the run was trained on"
        )
    return card.class_names.index(name)


def predict(
    run: str,
    images: list[str],
    topk: int = 3,
    device: str = "auto",
    out: str | None = None,
) -> list[dict[str, Any]]:
    """Label photographs with the deployed model of a run.

    Args:
        run: run folder.
        images: image files.
        topk: labels an image.
        device: auto, cpu, cuda, cuda:1, mps.
        out: a JSON file for the result.

    Returns:
        for each image its path and ``labels``: ``[{"label", "probability"}, ...]``, most probable first.

    Raises:
        UserError: no finished run there, a file that is missing or no image.
    """
    if topk < 1:
        raise UserError(f"topk={topk} must be at least 1")
    model, card = load_deployed(run, pick_device(device))
    transform = transform_of(input_options(card)["input"])
    where = next(model.parameters()).device
    pictures = [
        read_image(path) for path in images
    ]  # all are read first: a bad name should not end half a listing
    result = []
    with torch.inference_mode():
        for path, picture in zip(images, pictures, strict=True):
            tensor: Tensor = transform(picture)
            probabilities = model(tensor[None].to(where)).float().softmax(-1)[0].cpu()
            best = probabilities.topk(min(topk, card.num_classes))
            labels = [
                {"label": card.class_names[i], "probability": float(p)}
                for p, i in zip(best.values, best.indices.tolist(), strict=True)
            ]
            result.append({"image": str(path), "labels": labels})
    if out is not None:
        write_json(out, result)
    return result


def show_evaluation(result: dict[str, Any]) -> None:
    """Print an evaluation: the totals, and the classes from worst to best."""
    console = Console()
    console.print(
        f"{result['run']} on {result['data']}: top-1 {result['top1']:.2f}%, top-5 {result['top5']:.2f}%, "
        f"loss {result['loss']:.4f}, {result['images']:,} images",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
    table = Table("class", "accuracy %")
    for name, value in sorted(result["per_class"].items(), key=lambda item: item[1])[:20]:
        table.add_row(Text(name), f"{value:.2f}")
    console.print(table)
    if len(result["per_class"]) > 20:
        console.print(f"the 20 worst of {len(result['per_class'])} classes; all are in the JSON of --out")


def show_predictions(result: list[dict[str, Any]]) -> None:
    """Print one line an image."""
    for row in result:
        print(
            row["image"]
            + ": "
            + ", ".join(f"{x['label']} {100 * x['probability']:.1f}%" for x in row["labels"])
        )
