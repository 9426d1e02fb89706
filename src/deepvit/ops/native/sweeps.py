"""The compiled sweeps called on PyTorch's tensors, one call for the images and rows of each lane."""

# B batch, H heads, N tokens, D head width

from __future__ import annotations

import ctypes
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from deepvit.ops import lanes, sweeps
from deepvit.ops.blocking import NATIVE_ROWS, Piece, share_rows
from deepvit.ops.native.build import CSweep, CTensor, library
from deepvit.ops.registration import token_major

DTYPES = (torch.float32, torch.bfloat16)
"""What the compiled sweeps read and write."""


def sweep_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as ``ops/sweeps.py``."""
    compiled = _compiled(seed, theta, q, k, v)
    if compiled is None:
        return sweeps.sweep_forward(q, k, v, theta, seed, scale, need_stats, dropout_p)
    q, k, v, theta = _rows(q), _rows(k), _rows(v), theta.contiguous()
    o = token_major(q, theta.dtype)
    heads = theta.shape[0]

    def work(share: list[Piece]) -> Tensor:
        squares = torch.zeros(heads, dtype=torch.float64, device=q.device)
        call = _Call(compiled, q, theta, scale, backward=False)
        for piece in share:
            i = piece.images
            call(piece, squares=squares if need_stats else None, q=q[i], k=k[i], v=v[i], o=o[i])
        return squares

    found = lanes.run(work, _shares(q))
    return o, torch.stack(found).sum(dim=0).to(theta.dtype), theta.new_zeros(heads)


def sweep_backward(
    do: Tensor,
    dsquares: Tensor,
    dsums: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same as ``ops/sweeps.py``."""
    compiled = _compiled(seed, theta, dsquares, do, q, k, v)
    if compiled is None:
        rest = (seed, scale, need_stats, dropout_p)
        return sweeps.sweep_backward(do, dsquares, dsums, q, k, v, theta, *rest)
    do, q, k, v, theta = _rows(do), _rows(q), _rows(k), _rows(v), theta.contiguous()
    dq, dk, dv = (token_major(x) for x in (q, k, v))
    twice = (2 * dsquares.to(theta.dtype)).contiguous() if need_stats else None

    def work(share: list[Piece]) -> tuple[Tensor, list[tuple[slice, Tensor, Tensor]]]:
        dtheta, parts = torch.zeros(theta.shape, dtype=torch.float64, device=q.device), []
        call = _Call(compiled, q, theta, scale, backward=True)
        for piece in share:
            images = piece.images
            dk_piece, dv_piece = dk[images], dv[images]
            if not piece.whole:  # the other rows are another lane's
                dk_piece, dv_piece = (token_major(x[images], theta.dtype) for x in (k, v))
                parts.append((images, dk_piece, dv_piece))
            call(
                piece, twice=twice, dtheta=dtheta,
                q=q[images], k=k[images], v=v[images], d_o=do[images], dq=dq[images], dk=dk_piece, dv=dv_piece,
            )  # fmt: skip
        return dtheta, parts

    found = lanes.run(work, _shares(q))
    split = [part for _, parts in found for part in parts]
    for _, same in groupby(split, key=lambda part: part[0].start):
        (images, dk_sum, dv_sum), *others = same
        for _, dk_part, dv_part in others:
            dk_sum += dk_part
            dv_sum += dv_part
        dk[images], dv[images] = dk_sum, dv_sum
    return dq, dk, dv, torch.stack([dtheta for dtheta, _ in found]).sum(dim=0).to(theta.dtype)


class _Call:
    """One lane's calls of one compiled sweep: what they share, and its scratch memory."""

    def __init__(self, compiled: ctypes.CDLL, q: Tensor, theta: Tensor, scale: float, backward: bool) -> None:
        _, heads, tokens, width = q.shape
        room = compiled.deepvit_scratch(heads, tokens, width, NATIVE_ROWS, int(backward))
        # PyTorch aligns its memory to 64 bytes, as the sweeps want it
        scratch = lanes.scratch("native", room // 4, torch.float32, q.device)
        self.function = compiled.deepvit_backward if backward else compiled.deepvit_forward
        self.sweep = CSweep(
            theta=theta.data_ptr(), scratch=scratch.data_ptr(), heads=heads, tokens=tokens, width=width,
            block=NATIVE_ROWS, scale=scale,
        )  # fmt: skip

    def __call__(self, piece: Piece, **tensors: Tensor | None) -> None:
        """Do ``piece``; tensors by the names of ``CSweep``: [B, H, N, D] of the piece's images, and flat ones."""
        sweep = self.sweep
        sweep.images = piece.images.stop - piece.images.start
        sweep.first_row, sweep.last_row = piece.rows.start, piece.rows.stop
        for name, x in tensors.items():
            if x is not None:
                setattr(sweep, name, _view(x) if x.dim() == 4 else x.data_ptr())
        self.function(ctypes.byref(sweep))


def _view(x: Tensor) -> CTensor:
    image, head, token, _ = x.stride()
    return CTensor(x.data_ptr(), image, head, token, int(x.dtype == torch.bfloat16))


def _rows(x: Tensor) -> Tensor:
    """``x`` with a contiguous last dimension; a gradient of a sum, for one, has none."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _shares(q: Tensor) -> list[list[Piece]]:
    batch, heads, tokens, _ = q.shape
    return share_rows(batch, heads, tokens, lanes.count("cpu"))


def _compiled(seed: Tensor | None, theta: Tensor, *inputs: Tensor) -> Any:
    """The library; None for what it would misread: dropout, tensors of other kinds, which a program that was exported
    and then moved may hand over, and dispatch modes, which must see each operation. None, too, without a compiler."""
    if seed is not None or torch._C._len_torch_dispatch_stack() or theta.dtype != torch.float32:
        return None
    for x in (theta, *inputs):
        plain = type(x) in (Tensor, torch.nn.Parameter) and x.device.type == "cpu" and not x.is_neg()
        if not plain or x.dtype not in DTYPES or x.numel() == 0:
            return None
    found = library()
    return None if isinstance(found, str) else found
