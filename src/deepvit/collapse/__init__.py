"""Collapse: what is measured of maps and tokens, block by block, and what it means."""

from deepvit.collapse.catalogue import METRICS, register
from deepvit.collapse.measuring import measure
from deepvit.collapse.metrics.metric import Metric
from deepvit.collapse.probe import CollapseProbe

__all__ = ["METRICS", "CollapseProbe", "Metric", "measure", "register"]
