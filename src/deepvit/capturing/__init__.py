"""Capture: attention maps, tokens, queries, keys and values of any model, without its code; and lesions of it."""

from __future__ import annotations

from deepvit.capturing.anatomy import Anatomy, survey
from deepvit.capturing.lesions import (
    DropAttention,
    EndAfter,
    Lesion,
    ReplaceMap,
    ReplacePatches,
    SkipBlock,
)
from deepvit.capturing.replacing import control, intervene, refusal
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
    "Anatomy",
    "AttentionConsumer",
    "Check",
    "DropAttention",
    "EndAfter",
    "Lesion",
    "MapLayout",
    "ReplaceMap",
    "ReplacePatches",
    "Seen",
    "SkipBlock",
    "Skipped",
    "TokenConsumer",
    "TokenLayout",
    "attention_blocks",
    "capture",
    "control",
    "intervene",
    "refusal",
    "survey",
]
