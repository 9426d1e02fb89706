"""``deepvit convert``: official checkpoints to safetensors."""

from __future__ import annotations

from typing import Any

from deepvit.commands.command import Command
from deepvit.models import convert


def show(result: dict[str, Any]) -> None:
    """Print what was converted."""
    print(", ".join(f"{key} {value}" for key, value in result.items()))


COMMAND = Command(
    convert,
    show,
    examples=(
        "deepvit convert official.pth.tar deepvit.safetensors",
        "deepvit convert weights.pth deepvit.safetensors --model deepvit_s_patch16_224",
    ),
)
