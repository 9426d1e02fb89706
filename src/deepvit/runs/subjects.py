"""A MODEL string to a network with its preprocessing, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import nn
from torchmetrics import Metric

from deepvit import models
from deepvit.collapse.lesions.score import Score
from deepvit.data import InputSpec
from deepvit.errors import UserError
from deepvit.runs import hugging_face
from deepvit.runs.card import load_deployed
from deepvit.runs.folder import open_stored, stored_options
from deepvit.runs.hugging_face import first_line
from deepvit.runs.inputs import input_of
from deepvit.tasks import Task
from deepvit.tasks.task import Meter

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
    remark: str = ""
    """What has to be said of the weights: where there are trained ones, or which of them were not loaded."""
    problem: Task | None = None
    open: Callable[..., Any] | None = None
    """Opens the data of a run as its task does; ``more`` are options of the source over the run's own."""


def load_subject(
    spec: str, arch: str | None = None, model_args: dict[str, Any] | None = None, pretrained: bool = False
) -> Subject:
    """Load what a MODEL string names.

    Args:
        spec: a run folder; a checkpoint file (``.pth``, ``.pth.tar``, ``.safetensors``), with ``arch``; a local
            Hugging Face folder or ``hf:NAME``; ``torchvision:NAME``; or a timm name.
        arch: the model that a checkpoint file belongs to; guessed from its shapes for official DeepViT files.
        model_args: the model's own arguments (timm names and checkpoint files; of Hugging Face's only ``img_size``).
        pretrained: published weights for a timm or torchvision name; without, it is an untrained network.

    Raises:
        UserError: nothing of that name, weights that do not fit, a network that cannot be fetched.
    """
    arguments = dict(model_args or {})
    path = Path(spec)
    hub = spec.startswith("hf:") or ((path / "config.json").exists() and not is_run(path))
    own = path.is_dir() or spec.startswith(("hf:", "torchvision:"))
    for option, given in (("--arch", arch), ("--model.KEY", model_args if not hub else None)):
        if own and given:
            raise UserError(
                f"{option} goes with a timm name or a checkpoint file; {spec} says itself what it is"
            )
    if pretrained and (path.exists() or spec.startswith("hf:")):
        raise UserError(f"--pretrained goes with a timm or torchvision name; {spec} has weights of its own")
    if hub:
        name = spec.removeprefix("hf:")
        return from_hugging_face(name, Path(name).is_dir(), arguments)
    if path.is_dir():
        if is_run(path):
            return from_run(path)
        raise UserError(
            f"{spec} is a folder, but neither a run (model.json) nor a Hugging Face model (config.json)"
        )
    if spec.startswith("torchvision:"):
        return from_torchvision(spec.removeprefix("torchvision:"), pretrained)
    if spec.endswith(CHECKPOINTS) or path.is_file():
        return from_checkpoint(path, arch, arguments)
    if arch is not None:
        raise UserError(f"--arch goes with a checkpoint file, and there is no file {spec}")
    if "/" in spec and ":" not in spec:
        offer = f"; a model of the hub is hf:{spec}" if spec.count("/") == 1 and spec[0] not in "./" else ""
        raise UserError(f"there is no file or folder {spec}{offer}")
    model = models.create(spec, pretrained=pretrained, **arguments)
    subject = Subject(spec, model, input_of(model, arguments))
    return subject if pretrained else untrained(subject, PUBLISHED if published(spec) else UNPUBLISHED)


PUBLISHED = "add --pretrained for published ones"
UNPUBLISHED = "none are published under this name; give a checkpoint file with --arch, or a run folder"


def published(name: str) -> bool:
    """Whether ``--pretrained`` finds weights for a timm name; a hub name is taken to have some."""
    if ":" in name:
        return True
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.has_weights)


def untrained(subject: Subject, remark: str) -> Subject:
    """The subject, told to have the weights that it starts with; ``remark``: where there are others."""
    subject.random, subject.remark = True, remark
    subject.notes.append(f"the weights are random (untrained): {remark}")
    return subject


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / "config.yaml").exists() or (path / "model.json").exists()


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
    """A task's watched figure as lesions want it: in percent, higher is better; None for others.

    Its meters ask no other process, since a report is the work of one.
    """
    column = problem.column()
    if column.better != "higher" or column.unit != "%":
        return None
    return Score(column.title, lambda: by_itself(problem.meter()), column.key)


def by_itself(meter: Meter) -> Meter:
    """A meter whose metrics (of torchmetrics, and parts of it) give the figures of this process alone."""
    for part in meter.modules() if isinstance(meter, nn.Module) else (meter,):
        if isinstance(part, Metric):
            part.sync_on_compute = part._to_sync = False
    return meter


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
    subject = Subject(f"torchvision:{name}", model, prepared)
    return subject if pretrained else untrained(subject, PUBLISHED)


def from_hugging_face(name: str, local: bool, arguments: dict[str, Any]) -> Subject:
    """A Hugging Face model by its hub name or local folder; of its arguments only the size of the images is the user's."""
    others = [key for key in arguments if key != "img_size"]
    if others:
        raise UserError(
            f"--model.{others[0]} goes with a timm name or a checkpoint file; of hf:NAME only --model.img_size"
        )
    size = arguments.get("img_size")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise UserError(f"--model.img_size takes a number of pixels, not {size!r}")
    model, prepared, names, notes, gone = hugging_face.load(name, local, size)
    subject = Subject(Path(name).name if local else f"hf:{name}", model, prepared, names, notes=notes)
    if gone is None:
        return subject
    if gone.count == gone.of:
        return untrained(subject, f"none of its tensors is in the file under its name (first: {gone.first})")
    subject.remark = (
        f"{gone.count} of its {gone.of} tensors are not in the file and are random (first: {gone.first})"
    )
    subject.notes.append(subject.remark)
    return subject
