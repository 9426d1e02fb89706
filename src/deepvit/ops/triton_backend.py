"""The Triton backend: the inner Re-attention operator (``core.py``) on NVIDIA GPUs, no map in memory.

``triton_kernels.py`` has the kernels; here are their launches, tile sizes and torch custom operators. Triton
is imported when an operator first runs. On the CPU the kernels run only in Triton's interpreter
(TRITON_INTERPRET=1 before Python starts): it is how they are tested without a GPU.
"""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deepvit.ops.registration import token_major

NAME = "triton"
MAX_HEADS = 16
MAX_HEAD_DIM = 64
SHARED_MEMORY = 227 * 1024
"""Bytes that a program may take on compute capability 9.0; the tile sizes are chosen for it."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

INSTEAD = "ask for backend='streaming', or 'auto'"


def why_not(q: Tensor, dropout_p: float) -> str | None:
    """One line: why this backend cannot run queries like ``q`` [B, H, N, D]; None if it can."""
    if dropout_p > 0:
        reason: str | None = "it has no attention dropout"
    elif q.dtype not in DTYPES:
        reason = f"it has no {str(q.dtype).removeprefix('torch.')}, only float32, bfloat16 and float16"
    elif q.shape[-1] > MAX_HEAD_DIM:
        reason = f"head width {q.shape[-1]} is more than {MAX_HEAD_DIM}"
    elif q.shape[1] > MAX_HEADS:
        reason = f"{q.shape[1]} heads are more than {MAX_HEADS}, and one program holds them all"
    elif q.dtype == torch.float16 and q.shape[2] > 65_000:
        reason = f"{q.shape[2]} tokens overflow float16 (bfloat16 would do)"
    else:
        reason = _environment(q.device.type, q.device.index)
    return None if reason is None else f"{reason}; {INSTEAD}"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _environment(device: str, index: int | None) -> str | None:
    """Why Triton cannot run on this device of this machine; None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch for Linux)"
    if _interpreted():
        return None
    if device != "cuda":
        return (
            f"it needs an NVIDIA GPU, and the input is on {device} (TRITON_INTERPRET=1 runs it there, slowly)"
        )
    if torch.version.hip is not None:
        return "it is written for NVIDIA GPUs, not for ROCm"
    if torch.cuda.get_device_properties(index or 0).shared_memory_per_block_optin < SHARED_MEMORY:
        return "its tiles need 227 KiB of shared memory, as H100, H200 and B200 have"
    return None


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


class Tile(NamedTuple):
    """How one kernel works: query rows and keys of a tile, warps a program, steps that memory is read ahead.

    ``parts``: products over the head width are made in this many parts, where a tile of the whole width would
    not fit into shared memory (backward kernels only).
    """

    rows: int
    keys: int
    warps: int = 8
    stages: int = 2
    parts: int = 1


class Tiles(NamedTuple):
    """One tile a kernel."""

    row_lse: Tile
    forward: Tile
    backward_rows: Tile
    backward_keys: Tile


def default_tiles(heads: int, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Tile sizes by what fits into registers and shared memory: tokens and accumulators of all heads at once.

    Chosen from the compiler's counts of registers, spills and shared memory for compute capability 9.0
    (``benchmarks/triton_resources.py``), since no GPU was at hand; ``benchmarks/gpu_attention.py --tune``
    measures the alternatives.
    """
    padded = _power_of_two(heads)
    wide = head_dim > 32
    if dtype == torch.float32:
        own, other = _rows_and_keys(padded, own=256, area=4096)
        parts = 2 if wide else 1
        return Tiles(
            row_lse=Tile(64, 64, warps=4),
            forward=Tile(own, other, stages=1),
            backward_rows=Tile(own, other, stages=1, parts=parts),
            backward_keys=Tile(other, own, stages=1, parts=parts),
        )
    small = _rows_and_keys(padded, own=256, area=4096)
    large = _rows_and_keys(padded, own=512, area=8192)
    # Widths that are not a multiple of 8 are read 2 bytes at a time, whose addresses fill registers.
    aligned = head_dim % 8 == 0
    return Tiles(
        row_lse=Tile(128, 64, warps=4),
        forward=Tile(*(large if aligned else small)),
        backward_rows=Tile(*(large if aligned and not wide else small)),
        backward_keys=Tile(*reversed(small)),
    )


def _rows_and_keys(padded_heads: int, own: int, area: int) -> tuple[int, int]:
    """``own`` is heads x tokens of the block a program owns; ``area`` is heads x rows x keys of a tile."""
    rows = min(128, own // padded_heads)
    return rows, area // (padded_heads * rows)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _constants(q: Tensor, tile: Tile) -> dict[str, Any]:
    """What a kernel knows when it is compiled."""
    heads, dim = q.shape[1], q.shape[3]
    padded = _power_of_two(heads)
    return {
        "H": heads,
        "D": dim,
        "HP": padded,
        "DP": max(16, _power_of_two(dim)),
        "T": max(16, padded),
        "W": tile.warps,
        "M": tile.rows,
        "K": tile.keys,
        "PARTS": tile.parts,
        "PRECISION": _precision(q.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _precision(dtype: torch.dtype) -> str:
    """Float32 products: three in TF32, which keep its digits, or one where torch may use TF32."""
    if _interpreted():
        return "widen"
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


_tiles_in_use: dict[tuple[int, int, torch.dtype], Tiles] = {}


def set_tiles(heads: int, head_dim: int, dtype: torch.dtype, tiles: Tiles | None) -> None:
    """Other tile sizes for one shape (None: the default), for the benchmark that looks for better ones."""
    if tiles is None:
        _tiles_in_use.pop((heads, head_dim, dtype), None)
    else:
        _tiles_in_use[heads, head_dim, dtype] = tiles


def _tiles(q: Tensor) -> Tiles:
    key = q.shape[1], q.shape[3], q.dtype
    return _tiles_in_use.get(key) or default_tiles(*key)


@torch.library.custom_op("deepvit::triton_core", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float, need_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(o, c, lse): lse [B, H, N] is log2-sum-exp2 of the score rows less log2 N, for the backward pass."""
    from deepvit.ops import triton_kernels as kernels

    batch, heads, tokens, _ = q.shape
    theta = theta.contiguous()
    o = token_major(v)
    lse = q.new_empty((batch, heads, tokens), dtype=torch.float32)
    if q.numel() == 0:
        return o, theta.new_zeros((heads, heads)), lse
    log2_scale = scale * math.log2(math.e)
    tiles = _tiles(q)
    known = _constants(q, tiles.row_lse)
    with _on(q.device):
        kernels.row_lse[(batch * heads * -(-tokens // tiles.row_lse.rows),)](
            q, k, lse, *q.stride(), *k.stride(), tokens, log2_scale,
            **{name: known[name] for name in known if name not in ("HP", "T", "W", "PARTS")},
        )  # fmt: skip
        known = _constants(q, tiles.forward)
        programs = batch * -(-tokens // tiles.forward.rows)
        c_parts = lse.new_empty((programs if need_stats else 0, heads, heads))
        kernels.forward[(programs,)](
            q, k, v, theta, lse, o, c_parts, *q.stride(), *k.stride(), *v.stride(), tokens, log2_scale,
            STATS=need_stats, **{name: known[name] for name in known if name != "PARTS"},
        )  # fmt: skip
    return o, c_parts.sum(0), lse


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float, need_stats: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return token_major(v), theta.new_empty(theta.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("deepvit::triton_core_backward", mutates_args=())
def _backward(
    do: Tensor,
    dc: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    lse: Tensor,
    scale: float,
    need_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and theta, from those of o and c."""
    from deepvit.ops import triton_kernels as kernels

    batch, heads, tokens, _ = q.shape
    theta, dc = theta.contiguous(), dc.contiguous()
    dq, dk, dv = token_major(q), token_major(k), token_major(v)
    if q.numel() == 0:
        return dq, dk, dv, torch.zeros_like(theta)
    tiles = _tiles(q)
    row_dot = torch.empty_like(lse)
    programs = batch * -(-tokens // tiles.backward_rows.rows)
    dtheta_parts = lse.new_empty((programs, heads, heads))
    strides = (*q.stride(), *k.stride(), *v.stride(), *do.stride())
    numbers = (tokens, scale, scale * math.log2(math.e))
    with _on(q.device):
        kernels.backward_rows[(programs,)](
            q, k, v, do, theta, dc, lse, dq, row_dot, dtheta_parts, *strides, *numbers,
            STATS=need_stats, **_constants(q, tiles.backward_rows),
        )  # fmt: skip
        kernels.backward_keys[(batch * -(-tokens // tiles.backward_keys.keys),)](
            q, k, v, do, theta, dc, lse, row_dot, dk, dv, *strides, *numbers,
            STATS=need_stats, **_constants(q, tiles.backward_keys),
        )  # fmt: skip
    return dq, dk, dv, dtheta_parts.sum(0)


@_backward.register_fake
def _(
    do: Tensor,
    dc: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    lse: Tensor,
    scale: float,
    need_stats: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return token_major(q), token_major(k), token_major(v), torch.empty_like(theta)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, theta, ctx.scale, ctx.need_stats = inputs
    ctx.save_for_backward(q, k, v, theta, output[2])
    ctx.mark_non_differentiable(output[2])


def _gradients(ctx: Any, do: Tensor, dc: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, theta, lse = ctx.saved_tensors
    grads = _backward(do, dc, q, k, v, theta, lse, ctx.scale, ctx.need_stats)
    return (*grads, None, None)


_forward.register_autograd(_gradients, setup_context=_save)


def core(
    q: Tensor, k: Tensor, v: Tensor, theta: Tensor, scale: float, need_stats: bool, dropout_p: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inner operator as ``core.py`` states it; ``why_not`` must have returned None."""
    assert dropout_p == 0.0
    assert q.dtype == k.dtype == v.dtype
    assert theta.dtype == torch.float32
    o, c, _ = _forward(q, k, v, theta, scale, need_stats)
    return o, c, None
