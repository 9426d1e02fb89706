"""Layers that take the place of timm's: Re-attention, and the syntax that names blocks."""

from __future__ import annotations

from deepvit.layers.blocks import parse_blocks
from deepvit.layers.reattention import ReAttention

__all__ = ["ReAttention", "parse_blocks"]
