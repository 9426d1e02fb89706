"""The arithmetic of the streaming backend: one sweep over blocks of maps forward, one backward.

A block is all heads of some images, or some query rows of one image, in two or three buffers that every block
reuses; lanes (``lanes.py``) share the blocks. Maps are computed in theta's dtype (float32 for half-precision
inputs: on a processor the softmax costs as much in bfloat16, and the variance of nearly uniform maps needs the
digits), and o is returned in it, because the gradient of the norm's gain is a sum over o that may cancel. Heads
lie outermost in a buffer, so that mixing them is one matrix product, theta [H, H] by maps [H, everything else].
"""

# B batch, H heads, N tokens, D head width; of a block: I images, R query rows, G = H I

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor

from deepvit.ops import lanes
from deepvit.ops.blocking import Block, plan
from deepvit.ops.registration import token_major

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


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
    """(o, c, e) of ``core.py``; c and e in the [H] form: sums of squares and of entries of the mixed maps."""
    _, heads, tokens, width = q.shape
    o = token_major(q, theta.dtype)
    if o.numel() == 0:
        return o, theta.new_zeros(heads), theta.new_zeros(heads)
    dropout = _Dropout(seed, dropout_p)
    # Either gives the same o. Statistics need the maps centred; centring v as well takes away what the entries of
    # a row have in common of their rounding. Maps smaller than v are cheaper to centre.
    centre_maps = need_stats or seed is not None or tokens < width
    centre_v = seed is None and (need_stats or not centre_maps)

    def work(share: list[Block]) -> tuple[Tensor, Tensor]:
        squares, sums = theta.new_zeros(heads), theta.new_zeros(heads)
        buffers = _Buffers(share, q, theta, maps=2)
        for images, blocks in _by_images(share):
            q_GND, k_GND = _gather("q", q, images, theta.dtype), _gather("k", k, images, theta.dtype)
            v_GND = _gather("v", v, images, theta.dtype, centre=centre_v)
            o_HIND = o[images].transpose(0, 1)
            k_GDN = k_GND.mT
            for number, rows in blocks:
                (S_GRN, M_GRN), (P_HX, M_HX), o_GRD, o_HIRD = buffers.of(images, rows)
                torch.baddbmm(S_GRN, q_GND[:, rows], k_GDN, beta=0, alpha=scale, out=S_GRN)
                P_GRN = torch.softmax(S_GRN, dim=-1, out=S_GRN)
                if seed is not None:
                    P_GRN.mul_(dropout.mask(P_GRN, number))
                if centre_maps:
                    P_GRN.sub_(1 / tokens)
                torch.mm(theta, P_HX, out=M_HX)
                if need_stats:
                    squares += torch.linalg.vector_norm(M_HX, dim=1).square_()
                    if seed is not None:
                        sums += M_HX.sum(dim=1)
                torch.bmm(M_GRN, v_GND, out=o_GRD)
                o_HIND[:, :, rows] = o_HIRD
        return squares, sums

    found = lanes.run(work, _shares(q, theta))
    squares, sums = (
        found[0] if len(found) == 1 else (torch.stack(parts).sum(0) for parts in zip(*found, strict=True))
    )
    return o, squares, sums


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
) -> Gradients:
    """Gradients of q, k, v [B, H, N, D] and theta [H, H].

    With M = sum_g theta P_g (centred), the gradient of o and of the sum of squares meet in one matrix,
    dM_h = dO_h v_h^T + 2 dsquares_h M_h, so that the statistics cost the sweep one scaling in place.
    """
    tokens = q.shape[2]
    dq, dk, dv = (token_major(x) for x in (q, k, v))
    if q.numel() == 0:
        return dq, dk, dv, torch.zeros_like(theta)
    twice_H1 = 2 * dsquares[:, None]
    dropout = _Dropout(seed, dropout_p)

    def work(share: list[Block]) -> tuple[Tensor, list[tuple[slice, Tensor]]]:
        dtheta, parts = torch.zeros_like(theta), []
        buffers = _Buffers(share, q, theta, maps=3)
        for images, blocks in _by_images(share):
            q_GND, k_GND = _gather("q", q, images, theta.dtype), _gather("k", k, images, theta.dtype)
            # adds a constant to each row of dM, which changes no gradient, but whose rounding would
            v_GND = _gather("v", v, images, theta.dtype, centre=seed is None)
            do_GND = _gather("do", do, images, theta.dtype)
            sums_2GND = lanes.scratch("dkv", 2 * k_GND.numel(), theta.dtype, theta.device)
            sums_2GND = sums_2GND.view(2, *k_GND.shape)
            dk_GND, dv_GND = sums_2GND.unbind(0)
            dq_HIND = dq[images].transpose(0, 1)
            begun, done = 0, 0
            k_GDN, v_GDN = k_GND.mT, v_GND.mT
            for number, rows in blocks:
                q_GRD, do_GRD = q_GND[:, rows], do_GND[:, rows]
                (A, P_GRN, C), (A_HX, _, C_HX), dq_GRD, dq_HIRD = buffers.of(images, rows)
                # maps, as in the forward sweep
                torch.baddbmm(P_GRN, q_GRD, k_GDN, beta=0, alpha=scale, out=P_GRN)
                torch.softmax(P_GRN, dim=-1, out=P_GRN)
                centred, mask = A, None
                if seed is not None:
                    mask = dropout.mask(P_GRN, number)
                    torch.mul(P_GRN, mask, out=centred).sub_(1 / tokens)
                else:
                    torch.sub(P_GRN, 1 / tokens, out=centred)
                M, M_HX = C, C_HX
                torch.mm(theta, A_HX, out=M_HX)
                torch.baddbmm(dv_GND, M.mT, do_GRD, beta=begun, out=dv_GND)
                # the mixed maps' gradient, in their place
                dM = M
                if need_stats:
                    M_HX.mul_(twice_H1)
                    torch.baddbmm(M, do_GRD, v_GDN, out=dM)
                    if seed is not None:
                        M_HX.add_(dsums[:, None])
                else:
                    torch.bmm(do_GRD, v_GDN, out=dM)
                dtheta += torch.mm(M_HX, A_HX.mT)
                # the maps' gradient, then the scores' in its place
                dP = A
                torch.mm(theta.mT, M_HX, out=A_HX)
                if mask is not None:
                    dP.mul_(mask)
                dS = torch._softmax_backward_data(dP, P_GRN, -1, theta.dtype, grad_input=dP)
                torch.baddbmm(dq_GRD, dS, k_GND, beta=0, alpha=scale, out=dq_GRD)
                dq_HIND[:, :, rows] = dq_HIRD
                torch.baddbmm(dk_GND, dS.mT, q_GRD, beta=begun, alpha=scale, out=dk_GND)
                begun, done = 1, done + _count(rows)
            if done < tokens:  # the other rows are another lane's
                parts.append((images, sums_2GND.clone()))
            else:
                _put(dk, dv, images, sums_2GND)
        return dtheta, parts

    with torch.autocast(q.device.type, enabled=False):  # backward() may be called under autocast
        found = lanes.run(work, _shares(q, theta))
        split = [part for _, parts in found for part in parts]
        for _, same in groupby(split, key=lambda part: part[0].start):
            (images, total), *others = same
            for _, part in others:
                total += part
            _put(dk, dv, images, total)
    return dq, dk, dv, torch.stack([dtheta for dtheta, _ in found]).sum(dim=0)


class _Dropout:
    """The same mask for a block in the forward and in the backward sweep."""

    def __init__(self, seed: Tensor | None, p: float) -> None:
        self.seed, self.keep = None if seed is None else int(seed), 1 - p

    def mask(self, like: Tensor, number: int) -> Tensor:
        """Zeros, and 1 / (1 - p) where kept, for block ``number``."""
        assert self.seed is not None
        generator = torch.Generator(like.device).manual_seed(self.seed + number)
        return torch.empty_like(like).bernoulli_(self.keep, generator=generator).div_(self.keep)


def _shares(q: Tensor, theta: Tensor) -> list[list[Block]]:
    batch, heads, tokens, _ = q.shape
    device = q.device.type
    return plan(batch, heads, tokens, theta.element_size(), device, lanes.count(device))


def _by_images(share: list[Block]) -> Iterator[tuple[slice, list[tuple[int, slice]]]]:
    """Runs of blocks of the same images: (images, [(the block's number among all, its rows)])."""
    for _, blocks in groupby(share, key=lambda block: block.images.start):
        same = list(blocks)
        yield same[0].images, [(block.number, block.rows) for block in same]


class _Buffers:
    """A lane's ``maps`` buffers for maps and one for rows of heads' width, cut to the size of each block."""

    def __init__(self, share: list[Block], q: Tensor, theta: Tensor, maps: int) -> None:
        _, self.heads, self.tokens, self.width = q.shape
        rows = self.heads * max(_count(block.images) * _count(block.rows) for block in share)
        self.sizes = [rows * self.tokens] * maps + [rows * self.width]
        self.flat = lanes.scratch("maps", sum(self.sizes), theta.dtype, theta.device).split(self.sizes)
        self.cut: dict[tuple[int, int], tuple[list[Tensor], list[Tensor], Tensor, Tensor]] = {}

    def of(self, images: slice, rows: slice) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """The maps' buffers as [G, R, N] and as [H, I R N], the other one as [G, R, D] and as [H, I, R, D]."""
        size = _count(images), _count(rows)
        if size not in self.cut:  # most blocks have one size, and calls hold the interpreter's lock
            groups = self.heads * size[0]
            lasts = [self.tokens] * (len(self.flat) - 1) + [self.width]
            *maps, product = (
                buffer[: groups * size[1] * last].view(groups, size[1], last)
                for buffer, last in zip(self.flat, lasts, strict=True)
            )
            mixed = [x.view(self.heads, -1) for x in maps]
            self.cut[size] = maps, mixed, product, product.unflatten(0, (self.heads, -1))
        return self.cut[size]


def _count(part: slice) -> int:
    return int(part.stop - part.start)


def _gather(use: str, x: Tensor, images: slice, dtype: torch.dtype, centre: bool = False) -> Tensor:
    """[B, H, N, D] -> [G, N, D] with heads outermost, less its mean over tokens if ``centre``.

    A copy in this lane's memory for ``use``: heads of a packed qkv lie far apart, and every block of rows reads them.
    """
    part = x[images].transpose(0, 1)
    copy = lanes.scratch(use, part.numel(), dtype, x.device).view(part.shape)
    if centre:
        torch.sub(part, part.mean(dim=2, keepdim=True, dtype=dtype), out=copy)
    else:
        copy.copy_(part)
    return copy.flatten(0, 1)


def _put(dk: Tensor, dv: Tensor, images: slice, sums_2GND: Tensor) -> None:
    for gradient, mine in zip((dk, dv), sums_2GND, strict=True):
        gradient[images].transpose(0, 1).copy_(mine.unflatten(0, (gradient.shape[1], -1)))
