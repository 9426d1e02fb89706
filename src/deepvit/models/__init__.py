"""DeepViT models, registered with timm by importing this package, and their checkpoints."""

from __future__ import annotations

from .block import ResidualScaleBlock
from .checkpoints import load_state, load_weights
from .conv_stem import ConvStem
from .deepvit import DeepVisionTransformer
from .factory import create, names, nearest, table
from .official import convert, infer_model, load_official

__all__ = [
    "ConvStem",
    "DeepVisionTransformer",
    "ResidualScaleBlock",
    "convert",
    "create",
    "infer_model",
    "load_official",
    "load_state",
    "load_weights",
    "names",
    "nearest",
    "table",
]
