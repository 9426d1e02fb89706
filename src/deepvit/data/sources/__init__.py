"""One string to a data set: ``digits``, folders, tars, and timm's ``torch/``, ``hfds/``, ``wds/`` schemes."""

from deepvit.data.sources.registry import SOURCES, open_data, open_images, table
from deepvit.data.sources.source import Source, Sources

__all__ = ["SOURCES", "Source", "Sources", "open_data", "open_images", "table"]
