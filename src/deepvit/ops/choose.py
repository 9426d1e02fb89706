"""Which backend runs: the one that was asked for, or for ``auto`` the fastest that was measured."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepvit.errors import UserError
from deepvit.ops import native, reference, streaming

BACKENDS: dict[str, Any] = {"reference": reference, "streaming": streaming, "native": native, "triton": None}
"""Every backend: name → its module; ``auto`` chooses among them. Triton's is imported when it is asked for."""


def register_backend(module: Any) -> None:
    """Add a backend: anything with ``NAME``, ``why_not`` and ``core`` (see ``deepvit.ops.core``), such as a module.

    Raises ValueError when there is one of this name.
    """
    if BACKENDS.get(module.NAME, module) is not module:
        raise ValueError(f"there is a backend {module.NAME!r} already")
    BACKENDS[module.NAME] = module


def backend_module(name: str) -> Any:
    """The module of a backend: ``NAME``, ``why_not`` and ``core`` (or, for reference, ``reattention``)."""
    if name == "triton":  # a statement, which torch.compile follows, and not importlib, which it does not
        from deepvit.ops import triton_backend

        return triton_backend
    return BACKENDS[name]


def choose_backend(q: Tensor, dropout_p: float = 0.0, backend: str = "auto") -> str:
    """The name of the backend that will run for queries like ``q`` [B, H, N, D].

    Raises:
        UserError: ``backend`` is not a backend, or cannot run this input; the reason and what to ask for
            instead are in the text. Only ``auto`` chooses: nothing else is ever replaced silently.
    """
    if backend == "auto":
        return _fastest(q, dropout_p)
    if backend not in BACKENDS:
        raise UserError(
            f"backend={backend!r} is not a Re-attention backend; choose auto, {', '.join(BACKENDS)}"
        )
    if q.device.type == "meta" or q.numel() == 0:
        return "streaming"  # nothing is computed, and what comes of it is the same with all
    reason: str | None = backend_module(backend).why_not(q, dropout_p)
    if reason is not None:
        raise UserError(f"backend={backend!r} cannot run here: {reason}")
    return backend


def available_backends(q: Tensor, dropout_p: float = 0.0) -> list[str]:
    """Names of the backends that can run queries like ``q`` [B, H, N, D]."""
    return [name for name in BACKENDS if backend_module(name).why_not(q, dropout_p) is None]


def _fastest(q: Tensor, dropout_p: float) -> str:
    # By what was measured (benchmarks/results): on a processor native takes about the time of ordinary fused
    # attention at every size, and streaming up to twice that; elsewhere streaming is the fastest so far. The triton
    # backend has not been timed on a GPU yet (benchmarks/gpu_attention.py does it), so that it runs when it is
    # asked for by name; it takes the place here when its figures are in.
    return "streaming" if native.why_not(q, dropout_p) else "native"
