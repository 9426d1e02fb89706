"""How a run is trained again, for the commands in its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepvit import cures
from deepvit.runs.card import ModelCard


def train_again(folder: Path, card: ModelCard, asked: str) -> dict[str, Any]:
    """What ``provenance["train"]`` of a report holds of a run.

    Args:
        folder: the run folder.
        card: that of its deployed network.
        asked: the cures that its options name (``--cures``).

    Returns:
        ``options``: the words after ``deepvit train`` that train it again; ``out``: its folder; ``cures``: ``asked``;
        ``cut``: whether blocks were taken out of the network, so that its block numbers are only its own and what is done
        next goes on from its weights.
    """
    cut = any(cures.CURES[entry["name"]].removes for entry in card.cures if entry["name"] in cures.CURES)
    options = ["--config", str(folder / "config.yaml")]
    return {"options": options, "out": str(folder), "cures": asked, "cut": cut}
