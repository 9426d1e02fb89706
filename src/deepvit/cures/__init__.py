"""Cures for collapse: named changes to Vision Transformers of timm, also with trained weights in them.

``apply(model, "attnscale@last:6+layerscale")`` puts them in; ``table()`` lists them; ``model.deepvit_cures``
is the record by which ``reapply`` rebuilds a cured model before its weights are loaded; ``register`` adds one of
your own.
"""

from __future__ import annotations

from deepvit.cures.cure import Cure
from deepvit.cures.putting import apply, blocks_from_report, reapply
from deepvit.cures.registry import CURES, answering, register, table
from deepvit.cures.syntax import Method, Wanted, parse, parse_method

REGISTRY = CURES
"""The same, by the name that it has had so far."""

__all__ = [
    "CURES",
    "REGISTRY",
    "Cure",
    "Method",
    "Wanted",
    "answering",
    "apply",
    "blocks_from_report",
    "parse",
    "parse_method",
    "reapply",
    "register",
    "table",
]
