"""The commands: name → one line of help. The module of that name here holds its function and what it prints.

A new command is one file and one line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepvit.commands.command import Command

NAMES: dict[str, str] = {
    "train": "train a network: any timm model, cures and diversity losses",
    "evaluate": "figures of a run on a data set",
    "predict": "what a run says of photographs",
    "diagnose": "collapse report of any Vision Transformer",
    "compare": "runs side by side: figures, cost, collapse, curves",
    "study": "depths x methods x seeds: table, figure and report",
    "export": "an ONNX file or a torch.export program, checked against the network",
    "push": "a run to a folder or a hub, where timm loads it from, with a model card",
    "figures": "the papers' figures from a study's records",
    "convert": "official checkpoints to safetensors",
    "check-data": "what is wrong in a data set, before training",
    "benchmark": "speed and memory against the peers",
    "list": "models, cures, recipes, data or tasks that there are",
}


_ADDED: dict[str, Command] = {}


def register(name: str, text: str, command: Command) -> None:
    """Add a command with its line of help. Raises ValueError when there is one of this name."""
    if name in NAMES:
        raise ValueError(f"there is a command {name!r} already")
    NAMES[name], _ADDED[name] = text, command


def find(name: str) -> Command:
    """The command of that name; its module is imported only now, so that each command loads no more than it needs.

    A hyphen in the name is an underscore in the module's.
    """
    if name in _ADDED:
        return _ADDED[name]
    module = name.replace("-", "_")
    command: Command = importlib.import_module(f"deepvit.commands.{module}").COMMAND
    return command
