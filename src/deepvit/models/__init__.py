"""DeepViT models, registered with timm by importing this package, and their checkpoints."""

from __future__ import annotations

from deepvit.models.block import ResidualScaleBlock
from deepvit.models.checkpoints import load_state, load_weights
from deepvit.models.conv_stem import ConvStem
from deepvit.models.deepvit import DeepVisionTransformer
from deepvit.models.factory import create, names, nearest, table
from deepvit.models.official import convert, infer_model, load_official

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
