"""Semantic segmentation: a class for every pixel, by any timm network with a neck and a decoder behind it."""

from deepvit.tasks.segmentation.problem import Segmentation

__all__ = ["Segmentation"]
