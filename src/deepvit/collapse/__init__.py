"""Collapse: what is measured of maps and tokens, block by block, and what it means."""

from deepvit.collapse.measuring import measure
from deepvit.collapse.probe import CollapseProbe

__all__ = ["CollapseProbe", "measure"]
