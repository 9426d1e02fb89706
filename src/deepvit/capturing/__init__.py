"""Capture: attention maps, tokens, queries, keys and values of any model, without its code."""

from __future__ import annotations

from deepvit.capturing.seen import (
    AttentionConsumer,
    Check,
    MapLayout,
    Seen,
    Skipped,
    TokenConsumer,
    TokenLayout,
)
from deepvit.capturing.session import attention_blocks, capture

__all__ = [
    "AttentionConsumer",
    "Check",
    "MapLayout",
    "Seen",
    "Skipped",
    "TokenConsumer",
    "TokenLayout",
    "attention_blocks",
    "capture",
]
