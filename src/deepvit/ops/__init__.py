"""Re-attention as one function with several backends (``core.py`` says what a backend implements)."""

from __future__ import annotations

from deepvit.ops.choose import BACKENDS, available_backends, choose_backend, register_backend
from deepvit.ops.operator import NORMS, reattention
from deepvit.ops.reference import reattention_maps

__all__ = [
    "BACKENDS",
    "NORMS",
    "available_backends",
    "choose_backend",
    "reattention",
    "reattention_maps",
    "register_backend",
]
