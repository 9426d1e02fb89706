"""Re-attention as one function with several backends (``core.py`` says what a backend implements)."""

from __future__ import annotations

from .choose import BACKENDS, available_backends, choose_backend
from .operator import NORMS, reattention
from .reference import reattention_maps

__all__ = ["BACKENDS", "NORMS", "available_backends", "choose_backend", "reattention", "reattention_maps"]
