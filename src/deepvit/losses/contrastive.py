"""Contrastive loss: a late patch token should match the early token of its own place best.

Shapes: B images, N patch tokens, C channels. Tokens come as [B, N, C] or, from windowed networks, as a grid
[B, h, w, C]. All arithmetic is in float32 (float64 stays float64), also under autocast.

Sources: Gong et al. 2021, "Vision Transformers with Patch Diversification" (arXiv 2104.12753), here "the
paper"; its official code, whose form differs; and Diverse-ViT (Chen et al. 2022, arXiv 2203.06345, MIT
licence).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.errors import UserError
from deepvit.losses.loss import Loss, Seen
from deepvit.losses.precision import full, no_autocast, unit
from deepvit.losses.tokens import patch_tokens

NEIGHBOURHOOD = 7


def patch_contrastive(
    first: Tensor,
    last: Tensor,
    form: str = "paper",
    *,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
) -> Tensor:
    """A late token should match the early token of its own place better than the average other token does.

    ``first`` and ``last`` are [B, N, C] or [B, h, w, C], of one shape: f_i and h_i below. The first
    ``prefix_tokens`` of both are ignored.

    - ``"paper"``: ``−mean_i log(e^{a_i} / (e^{a_i} + e^{b_i}))`` with ``a_i = f_i·h_i`` and
      ``b_i = f_i·mean_{j≠i} h_j``: raw dot products, no temperature, gradient stopped at f. f is the first
      block's output. Never builds N×N: the mean of the others is (sum − own) / (N − 1).
    - ``"official"``: three-way, ``−log softmax(a_i, b_i, c_i)[0]``, where ``c_i = f_i·(sum of h over the 7×7
      places around i, without i itself, / 48)``; f is the patch embedding before the position embedding,
      detached. Places outside the image count as zeros: 48 it is at the border too, as in the code. ``grid`` is
      (h, w); left out, a 4-axis input or a square says it.
    - ``"diverse_vit"``: as the paper's with unit vectors, and f keeps its gradient.

    With one patch there are no others, and the loss is 0. Returns a scalar; raises UserError for an unknown
    form, unequal shapes, or a grid that does not hold N tokens.
    """
    LOSS.check_form(form)
    if form == "official" and grid is None and last.ndim == 4:
        grid = (last.shape[1], last.shape[2])
    with no_autocast(last):
        first_BNC = full(patch_tokens(first, prefix_tokens))
        last_BNC = full(patch_tokens(last, prefix_tokens))
        if first_BNC.shape != last_BNC.shape:
            raise UserError(
                f"patch_contrastive compares tokens place by place, but first is {list(first_BNC.shape)} and "
                f"last is {list(last_BNC.shape)}; take both from blocks of one stage"
            )
        n = last_BNC.shape[1]
        if n == 1:
            return (first_BNC * last_BNC).sum() * 0.0
        if form == "diverse_vit":
            first_BNC, last_BNC = unit(first_BNC), unit(last_BNC)
        else:
            first_BNC = first_BNC.detach()
        own_BN = (first_BNC * last_BNC).sum(dim=-1)
        with_all_BN = torch.bmm(first_BNC, last_BNC.sum(dim=1).unsqueeze(-1)).squeeze(-1)
        others_BN = (with_all_BN - own_BN) / (n - 1)
        if form != "official":
            return F.softplus(others_BN - own_BN).mean()
        near_BN = (first_BNC * _neighbourhood_mean(last_BNC, grid)).sum(dim=-1)
        return (torch.logsumexp(torch.stack((own_BN, others_BN, near_BN)), dim=0) - own_BN).mean()


def _neighbourhood_mean(tokens_BNC: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Sum over the 7×7 places around each place, itself left out, divided by 48 at the border too."""
    b, n, c = tokens_BNC.shape
    height, width = grid or (math.isqrt(n), math.isqrt(n))
    if height * width != n:
        raise UserError(f"{n} patch tokens do not fill a {height}×{width} grid; pass grid=(height, width)")
    rows, columns = _band(height, tokens_BNC), _band(width, tokens_BNC)
    # Two small band matrices, one an axis: a box sum without unfolding 49 copies of the tokens.
    down = torch.matmul(rows, tokens_BNC.reshape(b, height, width * c)).view(b, height, width, c)
    box = torch.matmul(columns, down).reshape(b, n, c)
    return (box - tokens_BNC) / (NEIGHBOURHOOD**2 - 1)


def _band(size: int, like: Tensor) -> Tensor:
    place = torch.arange(size, device=like.device)
    return ((place[:, None] - place[None, :]).abs() <= NEIGHBOURHOOD // 2).to(like.dtype)


def compute(seen: Seen, form: str, options: object) -> Tensor:
    """The loss of a watched forward pass."""
    return patch_contrastive(seen.first(), seen.last(), form, grid=seen.grid())


LOSS = Loss(
    name="patch_contrastive",
    formula="−mean log(e^{a_i} / (e^{a_i} + e^{b_i})), a a token's match with its own place, b with the others",
    source="Gong et al. 2021, arXiv 2104.12753; Diverse-ViT",
    forms={
        "paper": frozenset({"first", "last"}),
        "official": frozenset({"embed", "normed"}),
        "diverse_vit": frozenset({"first", "last"}),
    },
    compute=compute,
    helps="alike patches",
    answers={
        "patches_alike": "a loss that ties each patch of the last block to its own input, not to the others"
    },
    paper_weight=1.0,
)
