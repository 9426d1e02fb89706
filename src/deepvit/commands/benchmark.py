"""``deepvit benchmark``: speed and memory against the peers."""

from __future__ import annotations

from typing import Any

from deepvit.benchmarking.run import benchmark
from deepvit.benchmarking.tables import table_of
from deepvit.commands.command import Command


def show(result: dict[str, Any]) -> None:
    """Print the table and the paths."""
    print(table_of(result))
    for path in result["files"]:
        print(path)


COMMAND = Command(
    benchmark,
    show,
    examples=(
        "deepvit benchmark attention",
        "deepvit benchmark model --rounds 5",
        "deepvit benchmark engine --timm_script pytorch-image-models/train.py",
    ),
)
