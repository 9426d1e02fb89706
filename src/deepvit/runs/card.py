"""The deployed model of a run: ``model.safetensors`` and ``model.json``, enough to rebuild it anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepvit import cures, models, tasks
from deepvit.data import InputSpec
from deepvit.errors import UserError
from deepvit.files import atomic_path, read_json, write_json
from deepvit.layers.entries import entries, set_entries

FORMAT = "deepvit-model/2"
BEFORE_TASKS = "deepvit-model/1"  # a classifier; the names of its classes stood beside the other fields


@dataclass
class ModelCard:
    """What ``model.json`` holds: how to build the network, what goes in and what comes out.

    ``facts`` are those of the task (``deepvit.tasks``): names of classes, for example. ``entries`` are the mean entries
    1/N of the maps that Re-attention's running statistics are of, by layer (``deepvit.layers.entries``); none in older
    files.
    """

    arch: str
    model_args: dict[str, Any]
    input: InputSpec
    task: str = tasks.DEFAULT
    facts: dict[str, Any] = field(default_factory=dict)
    cures: list[dict[str, Any]] = field(default_factory=list)
    entries: dict[str, float] = field(default_factory=dict)
    weights: str = "last"
    format: str = FORMAT

    @property
    def problem(self) -> tasks.Task:
        """The task with its facts."""
        return tasks.find(self.task)(self.facts)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelCard:
        """From the content of a ``model.json``, also of the time before there were several tasks."""
        values = dict(values)
        if values.get("format") == BEFORE_TASKS:
            values |= {"format": FORMAT, "facts": {"class_names": values.pop("class_names")}}
        return cls(**{**values, "input": InputSpec(**values["input"])})


def save_deployed(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write ``model.safetensors`` and ``model.json`` into ``folder``; each file whole or not at all."""
    card = replace(card, entries=entries(model))
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "arch": card.arch})
    write_json(folder / "model.json", asdict(card))


def read_card(run: str | Path) -> ModelCard:
    """Read ``model.json`` of a run folder.

    Raises:
        UserError: there is no such folder, it holds no finished run, or the file is not one of ours.
    """
    folder = Path(run)
    path = folder / "model.json"
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    if not path.exists() or not (folder / "model.safetensors").exists():
        hint = (
            f"finish it by: deepvit train --resume --out {folder}"
            if (folder / "config.yaml").exists()
            else ""
        )
        raise UserError(
            f"{folder} holds no finished run (model.json and model.safetensors){'; ' + hint if hint else ''}"
        )
    values = read_json(path, "a deepvit model description")
    try:
        card = ModelCard.from_json(values)
        card.problem  # noqa: B018  (an unknown task says so)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a deepvit model description: {error}") from None
    if card.format != FORMAT:
        raise UserError(f"{path} has format {card.format!r}; this version of deepvit reads {FORMAT!r}")
    return card


def build_from_card(card: ModelCard) -> nn.Module:
    """Build the network of a card with fresh weights, cures included."""
    problem = card.problem
    backbone = models.create(card.arch, num_classes=problem.width, **card.model_args)
    backbone = cures.reapply(backbone, card.cures) if card.cures else backbone
    return problem.network(backbone, card.input)


def load_deployed(run: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, ModelCard]:
    """Load the deployed model of a run folder in evaluation mode.

    Returns:
        the model on ``device`` and its card.

    Raises:
        UserError: no finished run there, or weights that do not fit the description.
    """
    card = read_card(run)
    model = build_from_card(card)
    path = Path(run) / "model.safetensors"
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own type for a damaged file
        raise UserError(f"{path} cannot be read ({error}): the file is damaged") from None
    models.load_weights(model, state, source=str(path), name=card.arch)
    if card.entries:
        set_entries(model, card.entries)
    return model.to(device).eval(), card


def pick_device(device: str = "auto") -> torch.device:
    """``auto`` → the accelerator that is there, else the CPU; other names as torch knows them.

    Raises:
        UserError: no such device here, or several, in the words of ``train --devices``.
    """
    # torch takes "cpu:2" for a device, and "2" for an accelerator's index: of a run's devices they are numbers of processes.
    if re.fullmatch(r"cpu:0*[1-9]\d*|[\d, ]+", device):
        raise UserError(
            f"device {device!r} cannot be used: this takes one device, and not several or a number of them; say auto, cpu, "
            "cuda or cuda:1"
        )
    if device == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return chosen
