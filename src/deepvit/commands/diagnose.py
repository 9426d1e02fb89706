"""``deepvit diagnose``: any Vision Transformer and images to a collapse report, from the shell and from Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import nn

from deepvit import data as sources
from deepvit.commands.check_data import source_options
from deepvit.commands.command import Command
from deepvit.data import DataOptions, ImageSet, InputSpec, open_images
from deepvit.data.loaders import eval_loader
from deepvit.data.split import evenly_spaced
from deepvit.errors import UserError
from deepvit.report import Report
from deepvit.report import diagnose as measure
from deepvit.report.words import has_random_weights, weights_remark
from deepvit.runs import pick_device
from deepvit.runs.again import train_again
from deepvit.runs.card import read_card
from deepvit.runs.folder import same_data, stored_options
from deepvit.runs.inputs import input_of
from deepvit.runs.subjects import Subject, load_subject


def diagnose(
    model: str | nn.Module,
    data: Any = None,
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
    data_args: dict[str, Any] | None = None,
    **measuring: Any,
) -> Report:
    """Write a collapse report of any Vision Transformer.

    Args:
        model: timm name, hf:NAME or a Hugging Face folder, torchvision:NAME, a run folder, or a checkpoint file; in Python
            also a network.
        data: images: a data set as for train, or any folder or .tar with images in it; a run's own by default; in Python
            also a loader of image tensors.
        out: folder for report.html and collapse.json; by default diagnosis/MODEL, and for a network in Python none.
        images: number of images, evenly spaced over the data.
        blocks: blocks to measure: all (default), first:N, last:N, 5-11.
        lesions: take blocks away to see what each is worth: auto (about twice the time of the rest), off, full.
        figures: also write PNG and SVG figures for papers.
        arch: model name that a checkpoint file belongs to.
        model_args: the model's own arguments, as --model.img_size 518.
        pretrained: published weights for a timm or torchvision name.
        batch_size: images at a time.
        device: auto, cpu, cuda, cuda:1, mps; a network in Python stays where it is.
        progress: show a progress bar with the time left.
        data_args: options of the data source by name, as for train (``--data.KEY`` on the command line); where the data is
            the run's own, those of the run hold unless given here.
        **measuring: more of ``deepvit.report.diagnose``, for callers in Python: ``name``, ``class_names``, ``normalize``,
            ``attention_images``, ``maps``, ``notes``, ``provenance``. And ``input`` for a network with a data string:
            what it takes, pixels or a ``deepvit.data.InputSpec``; by default what it says of itself as timm's do, else
            224 pixels.

    Raises:
        UserError: a model in which no attention over tokens is found, unreadable data, blocks out of range.
    """
    if images < 1 or batch_size < 1:
        raise UserError(f"images={images} and batch_size={batch_size} must be at least 1")
    common: dict[str, Any] = {
        "images": images, "blocks": blocks, "lesions": lesions, "figures": figures, "progress": progress,
    }  # fmt: skip
    told = measuring.pop("input", None)
    guessed = told is None and isinstance(model, nn.Module) and not getattr(model, "pretrained_cfg", None)
    if told is not None and (isinstance(model, str) or not isinstance(data, str | Path)):
        raise UserError(
            "input says what images a network takes, where data is a string: --model.img_size for a name"
        )
    if isinstance(model, nn.Module):
        for name, given in (("arch", arch), ("model_args", model_args), ("pretrained", pretrained or None)):
            if given is not None:
                raise UserError(f"{name} goes with the name of a model, and a network was given")
        if not isinstance(data, str | Path):
            if data_args:
                raise UserError("data_args go with a data string, and none was given")
            if data is None:
                raise UserError("give images beside the network: a loader of image tensors, or a data string")
            return measure(model, data, out=out, **{**common, **measuring})
        takes = InputSpec(told) if isinstance(told, int | tuple) else told or input_of(model, {})
        network, folder = Subject(type(model).__name__, model, takes), out
    else:
        network = load_subject(model, arch, model_args, pretrained)
        network.model.to(pick_device(device)).eval()
        folder = out if out is not None else str(Path("diagnosis") / safe_name(network.name))
    spec = str(data) if data is not None else network.data
    if spec is None:
        raise UserError("--data is needed: a folder or .tar of images, digits, torch/cifar10, ...")
    if isinstance(data, Iterable) and not isinstance(data, str):
        loader, class_names, facts = data, network.class_names, {}
        labelled = True
    else:
        pictures, names, remarks = pictures_of(spec, network, data_args)
        network.notes.extend(remarks)
        chosen = evenly_spaced(len(pictures), images)
        images_read = eval_loader(
            pictures if chosen is None else pictures.subset(chosen), batch_size, network.input
        )
        loader = Relabelled(images_read, names, network.class_names)
        class_names, facts = loader.names, {"data": spec}
        labelled = len(pictures) > 0 and isinstance(pictures.target(0), int) and pictures.target(0) >= 0
    if (
        isinstance(model, str) and "data" in facts
    ):  # a loader has no name by which deepvit train could be asked
        facts |= train_facts(model, spec, arch, model_args, pretrained)
    if network.random:
        facts["weights"] = "random"
    if network.remark:
        facts["weights_remark"] = network.remark
    known = {
        "name": network.name, "class_names": class_names, "normalize": (network.input.mean, network.input.std),
        "notes": network.notes, "score": network.score if labelled else None,
    }  # fmt: skip
    facts |= measuring.pop("provenance", None) or {}
    try:
        return measure(
            network.model, loader, out=folder, provenance=facts, **{**common, **known, **measuring}
        )
    except UserError as error:
        raise UserError(f"{network.name}: {error}") from None
    except RuntimeError as error:
        if not guessed:
            raise
        size, why = network.input, str(error).splitlines()[0]
        raise UserError(
            f"{network.name} failed on images of {size.height}×{size.width} pixels, taken because it does not say its size; "
            f"give input=PIXELS or deepvit.data.InputSpec(PIXELS, mean, std) ({why})"
        ) from error


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
        return {"train": train_again(path, read_card(path), str(stored_options(path).get("cures") or ""))}
    if arch is not None:
        options = ["--model", arch, "--weights", model]
    elif timm.is_model(model):
        options = ["--model", model, *(["--weights", "pretrained"] if pretrained else [])]
    else:
        return {}  # torchvision and Hugging Face networks are not trained here
    for key, value in (model_args or {}).items():
        options += [f"--model.{key}", str(value)]
    return {"train": {"options": [*options, "--data", data], "out": None}}


TAKEN = "all images in "


def pictures_of(
    spec: str, subject: Subject, options: dict[str, Any] | None = None
) -> tuple[ImageSet, list[str] | None, list[str]]:
    """Images to look at: the validation images of a data set, else any images in a place.

    Args:
        spec: data string.
        subject: the network; a run knows how its own data are opened.
        options: of the data source, by name.

    Returns:
        images, class names, and remarks: why folders were not taken as parts and classes.

    Raises:
        UserError: nothing there, or a stream, which cannot be sampled.
    """
    own = subject.data is not None and same_data(spec, subject.data)
    if own and subject.problem is not None and subject.open is not None:
        return subject.problem.pictures(subject.open(more=options)), subject.class_names, []
    try:
        data: Any = sources.open_data(spec, DataOptions.of(**(options or {})))
    except UserError as error:
        if not Path(spec).exists() or options:
            raise
        try:
            found = open_images(spec)
        except UserError:
            raise error from None
        folders = Path(spec).is_dir() and any(inner.is_dir() for inner in Path(spec).iterdir())
        remark = f"{TAKEN}{spec} were taken, those of training with them, and without labels: {error}"
        return found, None, [remark] if folders else []
    if not isinstance(data.val, ImageSet):
        raise UserError(
            f"{spec} is a stream and cannot be sampled for diagnosis: give a folder or a .tar of images"
        )
    return data.val, data.class_names, []


def safe_name(name: str) -> str:
    """A model's name as a folder's."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def show(report: Report) -> None:
    """Print the verdict and where the report lies."""
    from rich.console import Console

    console = Console()
    verdict = report.verdict
    remark = weights_remark(report.measurements)
    if has_random_weights(report.measurements):
        remark = f" has random weights (untrained): {remark}".rstrip(": ")
    elif remark:
        remark = f": {remark}"
    if remark:
        text = f"{report.measurements.name}{remark}."
        console.print(text, style="bold", highlight=False, markup=False)
    console.print(verdict.headline + ".", style="bold", highlight=False, markup=False)
    console.print(verdict.body, highlight=False, markup=False)
    unreadable = report.measurements.provenance.get("unreadable", [])
    if unreadable:
        what = "1 image was" if len(unreadable) == 1 else f"{len(unreadable)} images were"
        console.print(f"{what} left out: " + "; ".join(unreadable[:3]), highlight=False, markup=False)
    for cure in report.verdict.cures:
        console.print(f"  try {cure.name} in blocks {cure.blocks}: {cure.why}", highlight=False, markup=False)
    for remark in report.measurements.provenance.get("notes", []):
        if remark.startswith(TAKEN):
            console.print(remark, highlight=False, markup=False)
    for path in report.files:
        print(path)


COMMAND = Command(
    diagnose,
    show,
    source_options,
    examples=(
        "deepvit diagnose vit_small_patch16_224 --pretrained --data PHOTOS",
        "deepvit diagnose runs/a --blocks last:4 --figures",
    ),
)
