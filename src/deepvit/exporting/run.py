"""``deepvit.export``: a network to one file that needs no deepvit, checked, with the description that its user needs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim

from deepvit.data import preparation
from deepvit.errors import UserError
from deepvit.exporting.checking import Case, compare, shape_told
from deepvit.exporting.formats import FORMATS, INPUT, OUTPUT, Answer, Format
from deepvit.exporting.plain import plain
from deepvit.exporting.sizes import another, other_sizes
from deepvit.files import atomic_path, read_json, write_json
from deepvit.provenance import versions
from deepvit.runs.hugging_face import first_line
from deepvit.runs.inputs import input_of
from deepvit.runs.subjects import Subject, load_subject

FORMAT = "deepvit-export/1"
FOLDER = "exported"
OURS = "deepvit"


@dataclass
class Exported:
    """A file that was written and checked.

    Attributes:
        path: the file; ``description``: the JSON beside it.
        runtime: what it was asked by in the check.
        step: images may have any multiple of so many pixels; None where their size is fixed.
        fixed: why it is fixed.
        cases: the batches that were compared.
        seconds: of the whole call.
    """

    path: Path
    description: Path
    runtime: str
    size: tuple[int, int]
    step: int | None
    fixed: str
    cases: list[Case] = field(default_factory=list)
    seconds: float = 0.0


def export(
    model: str | nn.Module,
    format: Literal["onnx", "pt2"] = "onnx",
    out: str | None = None,
    dynamic_size: Literal["auto", "on", "off"] = "auto",
    arch: str | None = None,
    model_args: dict[str, Any] | None = None,
    pretrained: bool = False,
) -> Exported:
    """Write a network as one file for deployment, and keep it only when it answers as the network does.

    Args:
        model: run folder, timm name, hf:NAME or a Hugging Face folder, torchvision:NAME, or a checkpoint file; in Python
            also a network.
        format: onnx (for onnxruntime and others) or pt2 (a torch.export program).
        out: the file; by default exported/model.onnx in the run folder, exported/MODEL.onnx for other models. The
            description is beside it, with the ending .json.
        dynamic_size: images of any size: auto (where the network takes them), on (or stop), off.
        arch: model name that a checkpoint file belongs to.
        model_args: the model's own arguments, as --model.dynamic_img_size true.
        pretrained: published weights for a timm or torchvision name.

    Raises:
        UserError: a network that cannot be written in plain operations, a file that answers otherwise than the network by
            more than 1e-4, a size that should move and cannot.
    """
    started = time.perf_counter()
    if format not in FORMATS:
        raise UserError(f"format={format!r} is unknown; choose {' or '.join(FORMATS)}")
    kind = FORMATS[format]
    subject = subject_of(model, arch, model_args, pretrained)
    path = place(subject, model, kind, out)
    description = path.with_suffix(".json")
    check_place(path, description)
    network = subject.model.to("cpu").eval()
    try:
        result = written(subject, network, kind, path, description, dynamic_size)
    except UserError as error:
        raise UserError(f"{subject.name} cannot be exported: {error}") from None
    result.seconds = time.perf_counter() - started
    return result


def subject_of(
    model: str | nn.Module, arch: str | None, model_args: dict[str, Any] | None, pretrained: bool
) -> Subject:
    """The network with what is known of it."""
    if not isinstance(model, nn.Module):
        return load_subject(str(model), arch, model_args, pretrained)
    for name, given in (("arch", arch), ("model_args", model_args), ("pretrained", pretrained or None)):
        if given is not None:
            raise UserError(f"{name} goes with the name of a model, and a network was given")
    made = getattr(
        getattr(model, "patch_embed", None), "img_size", None
    )  # timm's account is that of the name
    return Subject(type(model).__name__, model, input_of(model, {} if made is None else {"img_size": made}))


def place(subject: Subject, model: str | nn.Module, kind: Format, out: str | None) -> Path:
    """Where the file goes."""
    if out is None:
        if subject.problem is not None and isinstance(model, str):
            return Path(model) / FOLDER / f"model{kind.suffix}"
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in subject.name)
        return Path(FOLDER) / f"{name}{kind.suffix}"
    path = Path(out)
    if path.is_dir() or out.endswith(os.sep):
        return path / f"model{kind.suffix}"
    if path.suffix != kind.suffix:
        raise UserError(f"--out {out} does not end in {kind.suffix}, as files of this format do")
    return path


def check_place(path: Path, description: Path) -> None:
    """Refuse to write over somebody else's JSON: a run folder has a model.json of its own."""
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; a file is wanted")
    if (
        description.exists()
        and read_json(description, "the description of an export").get("format") != FORMAT
    ):
        raise UserError(
            f"{description} is not the description of an export, and is not overwritten: give --out another folder or name"
        )


def written(
    subject: Subject, network: nn.Module, kind: Format, path: Path, description: Path, dynamic_size: str
) -> Exported:
    """Trace, write and check: with images of any size where that goes, else of one."""
    problem, spec = subject.problem, subject.input
    asked = network if problem is None else problem.deployed(network)
    simple = plain(network)
    simple = simple if problem is None else problem.deployed(simple)
    step, fixed = None, "as --dynamic_size off asks"
    if dynamic_size != "off":
        step, fixed = other_sizes(simple, spec.hw, len(spec.mean))
    tries = [None] if step is None else [step, None]
    if dynamic_size == "on" and step is None:
        raise UserError(
            f"it takes images of {spec.height}×{spec.width} pixels only ({fixed}): leave out --dynamic_size on"
        )
    for step in tries:
        sizes = [spec.hw] if step is None else [spec.hw, another((spec.height // 2, spec.width // 2), step)]
        made = Exported(path, description, kind.runtime, spec.hw, step, fixed if step is None else "")
        try:
            with atomic_path(description) as json_file, atomic_path(path) as file:
                shape = shape_told(asked, len(spec.mean), sizes)
                kind.write(traced(simple, len(spec.mean), spec.hw, step), file)
                made.cases = compare(asked, opened(kind, file), spec, sizes)
                write_json(json_file, described(subject, kind, file, made, shape))
            return made
        except UserError as error:
            if step is None or dynamic_size == "on":
                raise
            fixed = f"it takes others, but the file would not: {error}"
    raise AssertionError


def traced(
    network: nn.Module, channels: int, size: tuple[int, int], step: int | None
) -> torch.export.ExportedProgram:
    """The program of a network, for any batch and, with ``step``, any multiple of so many pixels.

    Raises:
        UserError: the network decides by values or shapes in a way that a program cannot hold.
    """
    moving = {0: Dim.DYNAMIC} | ({} if step is None else {2: Dim.DYNAMIC, 3: Dim.DYNAMIC})
    images = torch.zeros(2, channels, *(size if step is None else another(size, step)))
    try:
        with torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=(moving,), strict=False)
    except Exception as error:  # whatever the network's own code raises on the way
        raise UserError(
            f"torch.export cannot follow it ({type(error).__name__}: {first_line(error)})"
        ) from None
    own = sorted(
        {
            str(node.target)
            for node in program.graph.nodes
            if node.op == "call_function" and str(node.target).startswith(f"{OURS}.")
        }
    )
    if own:
        raise UserError(
            f"it computes with {own[0]}, an operator that only this package has: a subclass of ReAttention with a forward "
            "of its own needs a method folded() too"
        )
    return program


def opened(kind: Format, file: Path) -> Answer:
    """The file in its runtime; what the runtime does not take is the user's to know, in one line."""
    try:
        answer = kind.open(file)
    except Exception as error:
        raise UserError(f"{kind.runtime} does not take the file ({first_line(error)})") from None

    def told(images: torch.Tensor) -> torch.Tensor:
        try:
            return answer(images)
        except Exception as error:
            shape = "×".join(map(str, images.shape))
            raise UserError(f"{kind.runtime} does not take images of {shape} ({first_line(error)})") from None

    return told


def described(
    subject: Subject, kind: Format, file: Path, made: Exported, shape: list[int | str]
) -> dict[str, Any]:
    """What the JSON beside the file holds: all that its user needs."""
    spec, problem = subject.input, subject.problem
    height, width = ("height", "width") if made.step is not None else spec.hw
    steps = preparation.cropped(spec) if problem is None else problem.preparation(spec)
    answer: dict[str, Any] = {"meaning": "what the network gives"} if problem is None else problem.answer()
    if problem is None and subject.class_names is not None:
        answer["classes"] = list(subject.class_names)
    classes = answer.pop("classes", None)
    return {
        "format": FORMAT,
        "file": {
            "name": made.path.name,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "runtime": kind.runtime,
            **kind.versions(file),
        },
        "model": subject.name,
        "task": None if problem is None else problem.name,
        "input": {
            "name": INPUT,
            "shape": ["batch", len(spec.mean), height, width],
            "dtype": "float32",
            "size": list(spec.hw),
            "size_is": "fixed"
            if made.step is None
            else f"what it was trained on; any other multiple of {made.step} pixels goes",
            "multiple": made.step,
        },
        "preprocessing": {
            "size": list(spec.hw),
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop,
            "steps": steps,
        },
        "output": {"name": OUTPUT, "shape": shape, "dtype": "float32", **answer},
        "classes": classes,
        "checked": [dataclasses.asdict(case) for case in made.cases],
        "written_by": versions(),
    }
