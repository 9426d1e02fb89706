"""A MODEL string to a network with its preprocessing, wherever it comes from; and ``deepvit diagnose`` on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from deepvit import models
from deepvit.data import ImageData, ImageSet, open_data, open_images
from deepvit.data.datamodule import eval_loader
from deepvit.data.split import evenly_spaced
from deepvit.diagnostics import Report
from deepvit.diagnostics import diagnose as measure
from deepvit.errors import UserError
from deepvit.training.build import input_of
from deepvit.training.config import TrainConfig
from deepvit.training.deploy import load_deployed, pick_device

CHECKPOINTS = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")


@dataclass
class Subject:
    """A network to look at, and how images have to be prepared for it.

    ``input``: size (side in pixels), mean, std, interpolation, crop_pct. ``data``: the data set that it was
    trained on, where that is known.
    """

    name: str
    model: nn.Module
    input: dict[str, Any]
    class_names: list[str] | None = None
    data: str | None = None
    notes: list[str] = field(default_factory=list)


def load_subject(
    spec: str, arch: str | None = None, model_args: dict[str, Any] | None = None, pretrained: bool = False
) -> Subject:
    """Load what a MODEL string names.

    Args:
        spec: a run folder; a checkpoint file (``.pth``, ``.pth.tar``, ``.safetensors``), with ``arch``; a local
            Hugging Face folder or ``hf:NAME``; ``torchvision:NAME``; or a timm name.
        arch: the model that a checkpoint file belongs to; guessed from its shapes for official DeepViT files.
        model_args: the model's own arguments (timm names and checkpoint files).
        pretrained: published weights for a timm or torchvision name; without, it is an untrained network.

    Raises:
        UserError: nothing of that name, weights that do not fit, a network that cannot be fetched.
    """
    arguments = dict(model_args or {})
    path = Path(spec)
    if path.is_dir() or (spec.startswith("hf:")):
        if (path / "config.yaml").exists() or (path / "model.json").exists():
            return from_run(path)
        if spec.startswith("hf:") or (path / "config.json").exists():
            return from_hugging_face(spec.removeprefix("hf:"), local=path.is_dir())
        raise UserError(
            f"{spec} is a folder, but neither a run (model.json) nor a Hugging Face model (config.json)"
        )
    if spec.startswith("torchvision:"):
        return from_torchvision(spec.removeprefix("torchvision:"), pretrained)
    if spec.endswith(CHECKPOINTS) or path.is_file():
        return from_checkpoint(path, arch, arguments)
    if arch is not None:
        raise UserError(f"--arch goes with a checkpoint file, and there is no file {spec}")
    model = models.create(spec, pretrained=pretrained, **arguments)
    notes = [] if pretrained else ["the weights are random (untrained): add --pretrained for published ones"]
    return Subject(spec, model, input_of(model, arguments), notes=notes)


def from_run(path: Path) -> Subject:
    """A run folder: the deployed model, its classes and its data."""
    model, card = load_deployed(path)
    config = path / "config.yaml"
    data = TrainConfig.from_yaml(config).data if config.exists() else None
    return Subject(path.resolve().name, model, card.input, card.class_names, data)


def from_checkpoint(path: Path, arch: str | None, arguments: dict[str, Any]) -> Subject:
    """A checkpoint file of ``arch``; the official DeepViT layout names its own."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    name = arch if arch is not None else models.infer_model(models.load_state(path))
    if name is None:
        raise UserError(f"{path} does not show which model it belongs to: give its timm name with --arch")
    model = models.load_official(path, name, **arguments)
    return Subject(path.name, model, input_of(model, arguments))


def from_torchvision(name: str, pretrained: bool) -> Subject:
    """A classifier of torchvision by name."""
    import difflib

    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or ["vit_b_16"]
        raise UserError(f"torchvision has no model {name!r}; did you mean {', '.join(near)}?")
    weights = torchvision.models.get_model_weights(name)
    try:
        model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    except OSError as error:
        raise UserError(f"the weights of torchvision:{name} cannot be fetched: {first_line(error)}") from None
    transform = next(iter(weights)).transforms()
    size, resize = transform.crop_size[0], transform.resize_size[0]
    prepared = {
        "size": size, "mean": list(transform.mean), "std": list(transform.std),
        "interpolation": transform.interpolation.value, "crop_pct": size / resize,
    }  # fmt: skip
    notes = [] if pretrained else ["the weights are random (untrained): add --pretrained for published ones"]
    return Subject(f"torchvision:{name}", model, prepared, notes=notes)


class PixelValues(nn.Module):
    """A Hugging Face vision model that takes the image tensor as its one argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, images: Tensor) -> Any:
        """``[B, 3, H, W]`` → the model's own output."""
        return self.model(pixel_values=images)


def from_hugging_face(name: str, local: bool) -> Subject:
    """A Hugging Face model by its hub name or local folder; a classifier where the folder holds one."""
    try:
        from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
    except ImportError:
        raise UserError("Hugging Face models need the extra: pip install 'deepvit[hf]'") from None
    try:
        config = AutoConfig.from_pretrained(name)
        classifies = any("ImageClassification" in a for a in config.architectures or [])
        loader = AutoModelForImageClassification if classifies else AutoModel
        model = loader.from_pretrained(name)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        where = "the folder" if local else "the hub (is there a network, and is the name right?)"
        raise UserError(f"hf:{name} cannot be loaded from {where}: {first_line(error)}") from None
    size = getattr(config, "image_size", 224)
    size = size if isinstance(size, int) else size[-1]
    mean, std = [0.5] * 3, [0.5] * 3
    notes: list[str] = []
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        mean, std = list(processor.image_mean), list(processor.image_std)
    except (OSError, ValueError, ImportError, AttributeError):
        notes.append("no image processor was found: mean and std 0.5 are assumed")
    names = list(config.id2label.values()) if classifies and getattr(config, "id2label", None) else None
    prepared = {"size": size, "mean": mean, "std": std, "interpolation": "bicubic", "crop_pct": 1.0}
    shown = Path(name).name if local else f"hf:{name}"
    return Subject(shown, PixelValues(model), prepared, names, notes=notes)


def first_line(error: Exception) -> str:
    """The first line of another library's error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def diagnose(
    model: str,
    data: str | None = None,
    out: str | None = None,
    images: int = 256,
    blocks: str | None = None,
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
    fields = subject.input
    loader = eval_loader(
        pictures if chosen is None else pictures.subset(chosen),
        batch_size,
        (int(fields["size"]),) * 2,
        mean=tuple(fields["mean"]),
        std=tuple(fields["std"]),
        interpolation=fields["interpolation"],
        crop_pct=fields["crop_pct"],
    )
    folder = Path(out) if out is not None else Path("diagnosis") / safe_name(subject.name)
    try:
        return measure(
            subject.model.to(where).eval(),
            loader,
            out=folder,
            images=images,
            blocks=blocks,
            name=subject.name,
            class_names=class_names,
            normalize=(subject.input["mean"], subject.input["std"]),
            figures=figures,
            progress=progress,
            notes=subject.notes,
            provenance={"data": spec, **train_facts(model, spec, arch, model_args, pretrained)},
        )
    except UserError as error:
        raise UserError(f"{subject.name}: {error}") from None


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
        data: ImageData = open_data(spec)
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


def show_diagnosis(report: Report) -> None:
    """Print the verdict and where the report lies."""
    from rich.console import Console

    console = Console()
    console.print(report.verdict.headline, style="bold", highlight=False, markup=False)
    console.print(report.verdict.text, highlight=False, markup=False)
    for cure in report.verdict.cures:
        console.print(f"  try {cure.name} in blocks {cure.blocks}: {cure.why}", highlight=False, markup=False)
    for path in report.files:
        print(path)


def show_conversion(result: dict[str, Any]) -> None:
    """Print what was converted."""
    print(", ".join(f"{key} {value}" for key, value in result.items()))
