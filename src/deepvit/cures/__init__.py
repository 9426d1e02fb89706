"""Cures for collapse: named changes to any timm Vision Transformer, also with trained weights in it.

``apply(model, "attnscale@last:6+layerscale")`` puts them in; ``table()`` lists them; ``model.deepvit_cures``
is the record by which ``reapply`` rebuilds a cured model before its weights are loaded.
"""

from __future__ import annotations

from deepvit.cures.catalogue import REGISTRY, table
from deepvit.cures.parse import Method, Wanted, parse, parse_method
from deepvit.cures.registry import Cure
from deepvit.cures.surgery import apply, blocks_from_report, reapply

__all__ = [
    "REGISTRY",
    "Cure",
    "Method",
    "Wanted",
    "apply",
    "blocks_from_report",
    "parse",
    "parse_method",
    "reapply",
    "table",
]
