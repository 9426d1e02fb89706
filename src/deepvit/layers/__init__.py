"""Layers that take the place of timm's: Re-attention, and the syntax that names blocks."""

from __future__ import annotations

from .blocks import parse_blocks

__all__ = ["parse_blocks"]
