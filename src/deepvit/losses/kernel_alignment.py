"""Patch kernel alignment: centred kernels of patch tokens line up with a frozen teacher's.

Shapes: B images, N patch tokens, C channels (of the network and of the teacher; they may differ).
Source: arXiv 2509.05606, its formula: 1 − CKA of linear kernels, an image at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepvit.losses.loss import Loss, Seen
from deepvit.losses.precision import no_autocast
from deepvit.losses.tokens import same_places


def patch_kernel_alignment(
    tokens: Tensor, teacher: Tensor, form: str = "linear", *, prefix_tokens: int = 0
) -> Tensor:
    """``1 − CKA(H K_s H, H K_t H)``, mean over images: 0 where tokens are the teacher's up to rotation, shift and size.

    K = X Xᵀ over an image's patch tokens, H = 1 − 1/N takes the mean token out, and CKA(A, B) = ⟨A, B⟩ / (‖A‖ ‖B‖).
    ``tokens`` is [B, N, C] or [B, h, w, C], ``teacher`` the same places with channels of its own; the first
    ``prefix_tokens`` of both are ignored. The gradient is stopped at the teacher. Where all tokens of an image are
    equal, its kernel is 0 and its alignment counts as 0, without gradient.

    Returns a scalar in [0, 1]; raises UserError for an unknown form or other places.
    """
    LOSS.check_form(form)
    with no_autocast(tokens):
        x, y = same_places(tokens, teacher, prefix_tokens)
        # Centring the tokens centres the kernel on both sides.
        x, y = x - x.mean(dim=1, keepdim=True), (y - y.mean(dim=1, keepdim=True)).detach()
        # A size of its own for each image, so that squares of squares stay within float32.
        x, y = _sized(x), _sized(y)
        own, its = torch.bmm(x, x.mT), torch.bmm(y, y.mT)
        lengths = own.flatten(1).norm(dim=1) * its.flatten(1).norm(dim=1)
        there = lengths > torch.finfo(lengths.dtype).tiny
        aligned = (own * its).sum(dim=(1, 2)) / torch.where(there, lengths, torch.ones_like(lengths))
        return 1 - torch.where(there, aligned, torch.zeros_like(aligned)).mean()


def _sized(x: Tensor) -> Tensor:
    size = x.flatten(1).norm(dim=1).view(-1, 1, 1)
    there = size > torch.finfo(size.dtype).tiny
    return torch.where(there, x / torch.where(there, size, torch.ones_like(size)), torch.zeros_like(x))


def compute(seen: Seen, form: str, options: object) -> Tensor:
    """The loss of a watched forward pass."""
    return patch_kernel_alignment(seen.last(), seen.teacher(), form)


LOSS = Loss(
    name="patch_kernel_alignment",
    formula="1 − CKA of the centred kernels XXᵀ of patch tokens and of a frozen teacher's",
    source="arXiv 2509.05606",
    forms={"linear": frozenset({"normed", "teacher"})},
    compute=compute,
    helps="dense features that decay in long training",
)
