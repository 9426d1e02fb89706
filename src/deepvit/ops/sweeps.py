"""The arithmetic of the streaming backend: one sweep over blocks of maps forward, one backward.

A block is all heads of some images, or some query rows of one image, in three buffers that every block reuses.
Maps are computed in theta's dtype (float32 for half-precision inputs: on a processor the softmax costs as much
in bfloat16, and the variance of nearly uniform maps needs the digits). Heads lie outermost in a buffer, so that
mixing them is one matrix product, theta [H, H] by maps [H, everything else].
"""

# B batch, H heads, N tokens, D head width; of a block: I images, R query rows, G = H I

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .blocking import plan

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
    batch, heads, tokens, width = q.shape
    blocks = plan(batch, heads, tokens, theta.element_size(), q.device.type)
    o = v.new_empty(batch, tokens, heads, width).transpose(1, 2)
    squares, sums = theta.new_zeros(heads), theta.new_zeros(heads)
    dropout = _Dropout(q.device, seed, dropout_p)
    with torch.autocast(q.device.type, enabled=False):
        first, second = theta.new_empty(2, heads * blocks.images * blocks.rows * tokens).unbind(0)
        for images in _ranges(batch, blocks.images):
            q_GND, k_GND, v_GND = (_gather(x, images, theta.dtype) for x in (q, k, v))
            centre_maps = need_stats or seed is not None
            if not centre_maps:
                v_GND = v_GND - v_GND.mean(dim=1, keepdim=True)  # the same o, and N x D instead of N x N
            o_HIND = o[images].transpose(0, 1)
            for rows in _ranges(tokens, blocks.rows):
                S_GRN, P_GRN = _views(q_GND[:, rows], tokens, first, second)
                torch.baddbmm(S_GRN, q_GND[:, rows], k_GND.mT, beta=0, alpha=scale, out=S_GRN)
                torch.softmax(S_GRN, dim=-1, out=P_GRN)
                if seed is not None:
                    P_GRN.mul_(dropout.mask(P_GRN))
                if centre_maps:
                    P_GRN.sub_(1 / tokens)
                M_GRN = S_GRN
                torch.mm(theta, P_GRN.view(heads, -1), out=M_GRN.view(heads, -1))
                if need_stats:
                    squares += torch.linalg.vector_norm(M_GRN.view(heads, -1), dim=1).square_()
                    if seed is not None:
                        sums += M_GRN.view(heads, -1).sum(dim=1)
                o_HIND[:, :, rows] = torch.bmm(M_GRN, v_GND).unflatten(0, (heads, -1))
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
    batch, heads, tokens, _ = q.shape
    blocks = plan(batch, heads, tokens, theta.element_size(), q.device.type)
    dq, dk, dv = (_empty_like_packed(x) for x in (q, k, v))
    dtheta, theta_t = torch.zeros_like(theta), theta.mT.contiguous()
    dropout = _Dropout(q.device, seed, dropout_p)
    with torch.autocast(q.device.type, enabled=False):
        buffers = theta.new_empty(3, heads * blocks.images * blocks.rows * tokens).unbind(0)
        for images in _ranges(batch, blocks.images):
            q_GND, k_GND, v_GND, do_GND = (_gather(x, images, theta.dtype) for x in (q, k, v, do))
            if seed is None:
                # adds a constant to each row of dM, which changes no gradient, but whose rounding would
                v_GND = v_GND - v_GND.mean(dim=1, keepdim=True)
            dk_GND, dv_GND = theta.new_empty(2, *k_GND.shape).unbind(0)
            dq_HIND = dq[images].transpose(0, 1)
            for rows in _ranges(tokens, blocks.rows):
                q_GRD, do_GRD = q_GND[:, rows], do_GND[:, rows]
                A, P_GRN, C = _views(q_GRD, tokens, *buffers)
                # maps, as in the forward sweep
                torch.baddbmm(A, q_GRD, k_GND.mT, beta=0, alpha=scale, out=A)
                torch.softmax(A, dim=-1, out=P_GRN)
                centred, mask = A, None
                if seed is not None:
                    mask = dropout.mask(P_GRN)
                    torch.mul(P_GRN, mask, out=centred).sub_(1 / tokens)
                else:
                    torch.sub(P_GRN, 1 / tokens, out=centred)
                M = C
                torch.mm(theta, centred.view(heads, -1), out=M.view(heads, -1))
                begun = 0 if rows.start == 0 else 1
                torch.baddbmm(dv_GND, M.mT, do_GRD, beta=begun, out=dv_GND)
                # the mixed maps' gradient, in their place
                dM = M
                if need_stats:
                    M.view(heads, -1).mul_(2 * dsquares[:, None])
                    torch.baddbmm(M, do_GRD, v_GND.mT, out=dM)
                    if seed is not None:
                        dM.view(heads, -1).add_(dsums[:, None])
                else:
                    torch.bmm(do_GRD, v_GND.mT, out=dM)
                dtheta += _inner(dM, centred, heads)
                # the maps' gradient, then the scores'
                dP = A
                torch.mm(theta_t, dM.view(heads, -1), out=dP.view(heads, -1))
                if mask is not None:
                    dP.mul_(mask)
                dS = C
                torch._softmax_backward_data(dP, P_GRN, -1, theta.dtype, grad_input=dS)
                dq_HIND[:, :, rows] = torch.bmm(dS, k_GND).mul_(scale).unflatten(0, (heads, -1))
                torch.baddbmm(dk_GND, dS.mT, q_GRD, beta=begun, alpha=scale, out=dk_GND)
            for gradient, mine in ((dk, dk_GND), (dv, dv_GND)):
                gradient[images].transpose(0, 1).copy_(mine.unflatten(0, (heads, -1)))
    return dq, dk, dv, dtheta


class _Dropout:
    """The same masks, block by block in the same order, for the forward and the backward sweep."""

    def __init__(self, device: torch.device, seed: Tensor | None, p: float) -> None:
        self.keep = 1 - p
        if seed is not None:
            self.generator = torch.Generator(device).manual_seed(int(seed))

    def mask(self, like: Tensor) -> Tensor:
        """Zeros, and 1 / (1 - p) where kept."""
        return torch.empty_like(like).bernoulli_(self.keep, generator=self.generator).div_(self.keep)


def _gather(x: Tensor, images: slice, dtype: torch.dtype) -> Tensor:
    """[B, H, N, D] -> [G, N, D] with heads outermost; a view for one image in the right dtype."""
    if images.stop - images.start == 1:
        return x[images.start].to(dtype)
    x = x[images].transpose(0, 1)
    return torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x).flatten(0, 1)


def _views(like: Tensor, tokens: int, *buffers: Tensor) -> list[Tensor]:
    """Each flat buffer's beginning as [G, R, N], for the rows of ``like`` [G, R, D]."""
    groups, rows, _ = like.shape
    return [buffer[: groups * rows * tokens].view(groups, rows, tokens) for buffer in buffers]


def _inner(a: Tensor, b: Tensor, heads: int) -> Tensor:
    """[H, H] inner products of a's heads with b's, both [G, R, N]: one product per row, then a sum.

    As one product [H, x] by [x, H] it would take a third longer: so small a result does not split over threads.
    """
    a, b = (x.view(heads, -1, x.shape[-1]).transpose(0, 1) for x in (a, b))
    return torch.bmm(a, b.mT).sum(dim=0)


def _empty_like_packed(x: Tensor) -> Tensor:
    """[B, H, N, D] that lies in memory as [B, N, H, D], as the projections around attention want it."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _ranges(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))
