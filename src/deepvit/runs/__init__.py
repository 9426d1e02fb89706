"""Run folders: their record, the card from which a network is rebuilt, and MODEL strings to networks."""

from deepvit.runs.card import ModelCard, load_deployed, pick_device, read_card
from deepvit.runs.folder import Run, read_run

__all__ = ["ModelCard", "Run", "load_deployed", "pick_device", "read_card", "read_run"]
