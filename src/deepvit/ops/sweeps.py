"""The arithmetic of the streaming backend: one sweep over blocks of maps forward, one backward."""

# B batch, H heads, N tokens, D head width, R query rows of a block, I images of a block

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .blocking import Blocks, plan


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
    """(o, c, e) of ``core.py``."""
    batch, heads, tokens, width = q.shape
    dtype = theta.dtype
    blocks = plan(batch, heads, tokens, theta.element_size(), q.device.type)
    o = v.new_empty(batch, tokens, heads, width).transpose(1, 2)
    c, e = theta.new_zeros(heads, heads), theta.new_zeros(heads)
    maps = _Maps(q, k, dtype, scale, seed, dropout_p)
    if dropout_p == 0:
        v = v - v.mean(2, keepdim=True)
    for images, rows in _blocks(batch, tokens, blocks):
        # [I, H, R, N] as [H, I R N] would need a copy: mix heads image by image as one matrix product
        P = maps.block(images, rows).sub_(1 / tokens)
        flat = P.flatten(2)
        if need_stats:
            c += torch.matmul(flat, flat.mT).sum(0)
            if dropout_p > 0:
                e += flat.sum((0, 2))
        M = torch.matmul(theta, flat).view_as(P)
        o[images, :, rows] = torch.matmul(M, v[images].to(dtype)).to(o.dtype)
    return o, c, e


def sweep_backward(
    do: Tensor,
    dc: Tensor,
    de: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    seed: Tensor | None,
    scale: float,
    need_stats: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v [B, H, N, D] and theta [H, H]."""
    batch, heads, tokens, width = q.shape
    dtype = theta.dtype
    blocks = plan(batch, heads, tokens, theta.element_size(), q.device.type)
    dq, dk, dv = (theta.new_zeros(batch, tokens, heads, width).transpose(1, 2) for _ in range(3))
    dtheta = torch.zeros_like(theta)
    maps = _Maps(q, k, dtype, scale, seed, dropout_p)
    symmetric = dc + dc.mT
    if dropout_p == 0:
        v = v - v.mean(2, keepdim=True)
    for images, rows in _blocks(batch, tokens, blocks):
        P = maps.block(images, rows, keep=True)
        centred = (P - 1 / tokens).flatten(2)
        do_block = do[images, :, rows].to(dtype)
        dM = torch.matmul(do_block, v[images].to(dtype).mT)
        dtheta += torch.matmul(dM.flatten(2), centred.mT).sum(0)
        dP = torch.matmul(theta.mT, dM.flatten(2))
        M = torch.matmul(theta, centred).view_as(P)
        dv[images] += torch.matmul(M.mT, do_block)
        if need_stats:
            dP += torch.matmul(symmetric, centred)
            if dropout_p > 0:
                dP += de.view(heads, 1)
        dP = dP.view_as(P)
        if maps.mask is not None:
            dP *= maps.mask
            P = maps.softmax
        dS = torch._softmax_backward_data(dP, P, -1, dtype)
        dq[images, :, rows] = torch.matmul(dS, k[images].to(dtype)) * scale
        dk[images] += torch.matmul(dS.mT, q[images, :, rows].to(dtype)) * scale
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dtheta


class _Maps:
    """Makes blocks of (dropped-out) softmax maps, the same ones in every sweep in the same order."""

    def __init__(
        self, q: Tensor, k: Tensor, dtype: torch.dtype, scale: float, seed: Tensor | None, dropout_p: float
    ):
        self.q, self.k, self.dtype, self.scale, self.dropout_p = q, k, dtype, scale, dropout_p
        self.mask: Tensor | None = None
        self.softmax = q
        if seed is not None:
            self.generator = torch.Generator(device=q.device).manual_seed(int(seed))

    def block(self, images: slice, rows: slice, keep: bool = False) -> Tensor:
        """P [I, H, R, N]; with dropout also ``mask`` (0 or 1 / (1 - p)), and ``softmax`` where kept."""
        S = torch.matmul(
            self.q[images, :, rows].to(self.dtype) * self.scale, self.k[images].to(self.dtype).mT
        )
        P = torch.softmax(S, dim=-1)
        if self.dropout_p == 0:
            return P
        self.mask = torch.empty_like(P).bernoulli_(1 - self.dropout_p, generator=self.generator)
        self.mask /= 1 - self.dropout_p
        if keep:
            self.softmax = P
        return P * self.mask


def _blocks(batch: int, tokens: int, blocks: Blocks) -> Iterator[tuple[slice, slice]]:
    for image in range(0, batch, blocks.images):
        for row in range(0, tokens, blocks.rows):
            yield slice(image, min(image + blocks.images, batch)), slice(row, min(row + blocks.rows, tokens))
