"""Layers that take the place of timm's: Re-attention, and the syntax that names blocks."""

from __future__ import annotations

from .blocks import parse_blocks
from .reattention import ReAttention

__all__ = ["ReAttention", "parse_blocks"]
