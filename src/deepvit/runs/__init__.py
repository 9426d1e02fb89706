"""Run folders: their record, the card from which a network is rebuilt, and MODEL strings to networks."""

from deepvit.runs.card import ModelCard, load_deployed, pick_device, read_card
from deepvit.runs.cutting import Cost, cost, cut_run
from deepvit.runs.folder import Run, read_run

__all__ = [
    "Cost",
    "ModelCard",
    "Run",
    "cost",
    "cut_run",
    "load_deployed",
    "pick_device",
    "read_card",
    "read_run",
]
