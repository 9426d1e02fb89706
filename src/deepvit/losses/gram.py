"""Gram anchoring: patch tokens keep the likenesses among them that a frozen teacher's have.

Shapes: B images, N patch tokens, C channels (of the network and of the teacher; they may differ).
Source: DINOv3 (Siméoni et al. 2025, arXiv 2508.10104), its formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepvit.losses.loss import Loss, Seen
from deepvit.losses.precision import no_autocast, unit
from deepvit.losses.tokens import same_places


def gram_anchoring(tokens: Tensor, teacher: Tensor, form: str = "mean", *, prefix_tokens: int = 0) -> Tensor:
    """How far the cosines among an image's patch tokens are from those among a teacher's: 0 where all agree.

    ``tokens`` is [B, N, C] or [B, h, w, C], ``teacher`` the same places with channels of its own; the first
    ``prefix_tokens`` of both are ignored. The gradient is stopped at the teacher.

    - ``"mean"``: mean over images and pairs of ``(X̂X̂ᵀ − ŶŶᵀ)²``, X̂ and Ŷ unit tokens.
    - ``"frobenius"``: the squared Frobenius norm ‖X̂X̂ᵀ − ŶŶᵀ‖², mean over images: N² times as much.

    A zero token has cosine 0 with every token. Returns a scalar; raises UserError for an unknown form or other places.
    """
    LOSS.check_form(form)
    with no_autocast(tokens):
        x, y = same_places(tokens, teacher, prefix_tokens)
        x, y = unit(x), unit(y.detach())
        squares = (torch.bmm(x, x.mT) - torch.bmm(y, y.mT)).square()
        return squares.mean() if form == "mean" else squares.sum(dim=(1, 2)).mean()


def compute(seen: Seen, form: str, options: object) -> Tensor:
    """The loss of a watched forward pass."""
    return gram_anchoring(seen.last(), seen.teacher(), form)


LOSS = Loss(
    name="gram_anchoring",
    formula="mean (X̂X̂ᵀ − ŶŶᵀ)² of unit patch tokens X̂ to a frozen teacher's Ŷ",
    source="DINOv3, Siméoni et al. 2025, arXiv 2508.10104",
    forms={"mean": frozenset({"normed", "teacher"}), "frobenius": frozenset({"normed", "teacher"})},
    compute=compute,
    helps="dense features that decay in long training",
)
