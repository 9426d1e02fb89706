"""The kinds of file: how a traced program is written, and how a file is asked for an answer by the runtime that will run it.

A new one is a record in ``FORMATS``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepvit.errors import UserError

INPUT, OUTPUT = "images", "logits"
LARGEST = 2**31 - 2**20
"""Bytes that one ONNX file (a protocol buffer) holds."""

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix: of its files.
        runtime: the name of what runs it, for messages.
        write: a traced program into a file.
        open: a file → what answers images [B, 3, H, W] with logits.
        versions: facts about the file for ``model.json``.
    """

    suffix: str
    runtime: str
    write: Callable[[torch.export.ExportedProgram, Path], None]
    open: Callable[[Path], Answer]
    versions: Callable[[Path], dict[str, Any]]


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write an ONNX file that holds its weights."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX needs the extra ({error.name} is missing): pip install 'deepvit[export]' (--format pt2 does not)"
        ) from None
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values() if isinstance(t, Tensor))
    if weights > LARGEST:
        raise UserError(
            f"its weights have {weights / 2**30:.1f} GiB, and one ONNX file holds 2: take --format pt2"
        )
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            (),
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
        )


def open_onnx(path: Path) -> Answer:
    """onnxruntime on the processor."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # As the other libraries of this process: onnxruntime does not know what torch was given.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def answer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])

    return answer


def onnx_versions(path: Path) -> dict[str, Any]:
    """The operator set that a runtime must know."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    return {"opset": {one.domain or "ai.onnx": one.version for one in model.opset_import}}


def write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a torch.export program."""
    torch.export.save(program, path)


def open_program(path: Path) -> Answer:
    """The program, loaded anew."""
    module = torch.export.load(path).module()

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = module(images)
        return result

    return answer


def program_versions(path: Path) -> dict[str, Any]:
    """The torch that wrote it: older ones may not read it."""
    return {"torch": torch.__version__}


FORMATS: dict[str, Format] = {
    "onnx": Format(".onnx", "onnxruntime", write_onnx, open_onnx, onnx_versions),
    "pt2": Format(".pt2", "torch.export.load", write_program, open_program, program_versions),
}


def register(name: str, made: Format) -> None:
    """Add a kind of file. Raises ValueError when there is one of this name."""
    if FORMATS.get(name, made) is not made:
        raise ValueError(f"there is a format {name!r} already")
    FORMATS[name] = made
