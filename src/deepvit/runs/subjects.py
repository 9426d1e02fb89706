"""A MODEL string to a network with its preprocessing, wherever it comes from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepvit import models
from deepvit.collapse.lesions.score import Score
from deepvit.data import InputSpec
from deepvit.errors import UserError
from deepvit.runs.card import load_deployed
from deepvit.runs.folder import open_stored, stored_options
from deepvit.runs.inputs import input_of
from deepvit.tasks import Task

CHECKPOINTS = (".pth", ".pt", ".tar", ".safetensors", ".bin", ".ckpt")


@dataclass
class Subject:
    """A network to look at, and how images have to be prepared for it.

    ``class_names``: names of whole-number targets. ``data``: the data set that it was trained on, where that is known.
    ``score``: how good its answers are, by the task that it was trained for.
    """

    name: str
    model: nn.Module
    input: InputSpec
    class_names: list[str] | None = None
    data: str | None = None
    score: Score | None = None
    notes: list[str] = field(default_factory=list)
    random: bool = False
    """Whether the weights are those that the network starts with: nothing was loaded."""
    problem: Task | None = None
    open: Callable[[], Any] | None = None
    """Opens the data of a run as its task does."""


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
    own = path.is_dir() or spec.startswith(("hf:", "torchvision:"))
    for option, given in (("--arch", arch), ("--model.KEY", model_args)):
        if own and given:
            raise UserError(
                f"{option} goes with a timm name or a checkpoint file; {spec} says itself what it is"
            )
    if pretrained and (path.exists() or spec.startswith("hf:")):
        raise UserError(f"--pretrained goes with a timm or torchvision name; {spec} has weights of its own")
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
    return Subject(spec, model, input_of(model, arguments), notes=notes, random=not pretrained)


def from_run(path: Path) -> Subject:
    """A run folder: the deployed model, its classes and its data."""
    model, card = load_deployed(path)
    labels = card.problem.labels
    subject = Subject(path.resolve().name, model, card.input, None if labels is None else list(labels))
    subject.problem, subject.score = card.problem, score_of(card.problem)
    if (path / "config.yaml").exists():
        options = stored_options(path)
        subject.data = str(options["data"])
        subject.open = partial(open_stored, card.problem, options)
    return subject


def score_of(problem: Task) -> Score | None:
    """A task's watched figure as lesions want it: in percent, higher is better; None for others."""
    column = problem.column()
    if column.better != "higher" or column.unit != "%":
        return None
    return Score(column.title, problem.meter, column.key)


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
    prepared = InputSpec(
        size, tuple(transform.mean), tuple(transform.std), transform.interpolation.value, size / resize
    )
    notes = [] if pretrained else ["the weights are random (untrained): add --pretrained for published ones"]
    return Subject(f"torchvision:{name}", model, prepared, notes=notes, random=not pretrained)


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
    # The hub's client tells of each try to connect; what came of them is told below in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
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
    prepared = InputSpec(size, tuple(mean), tuple(std), "bicubic", 1.0)
    shown = Path(name).name if local else f"hf:{name}"
    return Subject(shown, PixelValues(model), prepared, names, notes=notes)


def first_line(error: Exception) -> str:
    """The first line of another library's error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
