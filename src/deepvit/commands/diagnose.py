"""``deepvit diagnose``: a MODEL string and a DATA string to a collapse report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import timm
import torch

from deepvit import data as sources
from deepvit.commands.command import Command
from deepvit.data import ImageData, ImageSet, open_images
from deepvit.data.loaders import eval_loader
from deepvit.data.split import evenly_spaced
from deepvit.errors import UserError
from deepvit.report import Report
from deepvit.report import diagnose as measure
from deepvit.runs import pick_device
from deepvit.runs.subjects import load_subject


def diagnose(
    model: str,
    data: str | None = None,
    out: str | None = None,
    images: int = 256,
    blocks: str | None = None,
    lesions: Literal["auto", "off", "full"] = "auto",
    figures: bool = False,
    arch: str | None = None,
    model_args: dict[str, Any] | None = None,
    pretrained: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    progress: bool = True,
) -> Report:
    """Write a collapse report of any Vision Transformer.

    Args:
        model: timm name, hf:NAME or a Hugging Face folder, torchvision:NAME, a run folder, or a checkpoint file.
        data: images: a data set as for train, or any folder or .tar with images in it; a run's own by default.
        out: folder for report.html and collapse.json; by default diagnosis/MODEL.
        images: number of images, evenly spaced over the data.
        blocks: blocks to measure: all (default), first:N, last:N, 5-11.
        lesions: take blocks away to see what each is worth: auto (about three times the time of the rest), off, full.
        figures: also write PNG and SVG figures for papers.
        arch: model name that a checkpoint file belongs to.
        model_args: the model's own arguments, as --model_args.img_size 518.
        pretrained: published weights for a timm or torchvision name.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, mps.
        progress: show a progress bar with the time left.

    Raises:
        UserError: a model in which no attention over tokens is found, unreadable data, blocks out of range.
    """
    if images < 1 or batch_size < 1:
        raise UserError(f"images={images} and batch_size={batch_size} must be at least 1")
    where = pick_device(device)
    subject = load_subject(model, arch, model_args, pretrained)
    spec = data if data is not None else subject.data
    if spec is None:
        raise UserError("--data is needed: a folder or .tar of images, digits, torch/cifar10, ...")
    pictures, class_names = pictures_of(spec)
    chosen = evenly_spaced(len(pictures), images)
    images_read = eval_loader(
        pictures if chosen is None else pictures.subset(chosen), batch_size, subject.input
    )
    loader = Relabelled(images_read, class_names, subject.class_names)
    folder = Path(out) if out is not None else Path("diagnosis") / safe_name(subject.name)
    try:
        return measure(
            subject.model.to(where).eval(),
            loader,
            out=folder,
            images=images,
            blocks=blocks,
            name=subject.name,
            class_names=loader.names,
            normalize=(subject.input.mean, subject.input.std),
            lesions=lesions,
            score=subject.score,
            figures=figures,
            progress=progress,
            notes=subject.notes,
            provenance={"data": spec, **train_facts(model, spec, arch, model_args, pretrained)},
        )
    except UserError as error:
        raise UserError(f"{subject.name}: {error}") from None


class Relabelled:
    """A loader of images whose labels are numbers of the network's classes, where both say what these are called.

    Else the labels stay as they are: whether they are the network's own, lesions find out by themselves.
    """

    def __init__(self, loader: Any, data: list[str] | None, network: list[str] | None) -> None:
        self.loader, self.names = loader, data
        self.order: torch.Tensor | None = None
        if data is not None and network is not None and data != network and set(data) <= set(network):
            self.order, self.names = torch.tensor([network.index(name) for name in data]), network

    @property
    def skipped(self) -> list[Any]:
        """Images that could not be read."""
        return list(self.loader.skipped)

    @property
    def batch_size(self) -> int | None:
        """Images of a batch, where the loader says it."""
        return getattr(self.loader, "batch_size", None)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for images, targets, *_ in self.loader:
            yield images, targets if self.order is None else self.order[targets]


def train_facts(
    model: str, data: str, arch: str | None, model_args: dict[str, Any] | None, pretrained: bool
) -> dict[str, Any]:
    """How ``deepvit train`` would be asked for this network, for the commands in the report; empty where it cannot be."""
    path = Path(model)
    if (path / "config.yaml").exists():
        return {"train": {"options": ["--config", str(path / "config.yaml")], "out": str(path)}}
    if arch is not None:
        options = ["--model", arch, "--weights", model]
    elif timm.is_model(model):
        options = ["--model", model, *(["--weights", "pretrained"] if pretrained else [])]
    else:
        return {}  # torchvision and Hugging Face networks are not trained here
    for key, value in (model_args or {}).items():
        options += [f"--model.{key}", str(value)]
    return {"train": {"options": [*options, "--data", data], "out": None}}


def pictures_of(spec: str) -> tuple[ImageSet, list[str] | None]:
    """Images to look at: the validation images of a data set with their class names, else any images in a place.

    Raises:
        UserError: nothing there, or a stream, which cannot be sampled.
    """
    try:
        data: ImageData = sources.open_data(spec)
    except UserError as error:
        if not Path(spec).exists():
            raise
        try:
            return open_images(spec), None
        except UserError:
            raise error from None
    if not isinstance(data.val, ImageSet):
        raise UserError(
            f"{spec} is a stream and cannot be sampled for diagnosis: give a folder or a .tar of images"
        )
    return data.val, data.class_names


def safe_name(name: str) -> str:
    """A model's name as a folder's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def show(report: Report) -> None:
    """Print the verdict and where the report lies."""
    from rich.console import Console

    console = Console()
    verdict = report.verdict
    console.print(verdict.headline + ".", style="bold", highlight=False, markup=False)
    console.print(verdict.body, highlight=False, markup=False)
    unreadable = report.measurements.provenance.get("unreadable", [])
    if unreadable:
        what = "1 image was" if len(unreadable) == 1 else f"{len(unreadable)} images were"
        console.print(f"{what} left out: " + "; ".join(unreadable[:3]), highlight=False, markup=False)
    for cure in report.verdict.cures:
        console.print(f"  try {cure.name} in blocks {cure.blocks}: {cure.why}", highlight=False, markup=False)
    for path in report.files:
        print(path)


COMMAND = Command(diagnose, show)
