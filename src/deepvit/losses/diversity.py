"""Losses that keep a network's patch tokens different from one another.

Shapes: B images, N patch tokens, C channels. Tokens come as [B, N, C] or, from windowed networks, as a grid
[B, h, w, C]. All arithmetic is in float32 (float64 stays float64), also under autocast.

Sources: Gong et al. 2021, "Vision Transformers with Patch Diversification" (arXiv 2104.12753), here "the
paper"; its official code, whose forms differ; and Diverse-ViT (Chen et al. 2022, arXiv 2203.06345, MIT
licence).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.errors import UserError
from deepvit.losses.precision import full, no_autocast, unit

COSINE_FORMS = ("paper", "diverse_vit")
CONTRASTIVE_FORMS = ("paper", "official", "diverse_vit")
NEIGHBOURHOOD = 7


def patch_tokens(tokens: Tensor, prefix_tokens: int = 0) -> Tensor:
    """The patch tokens [B, N, C] of [B, prefix + N, C], or of a grid [B, h, w, C] (which has no prefix
    tokens).

    Raises UserError for any other number of axes, or when nothing is left after the prefix.
    """
    if tokens.ndim == 4:
        tokens = tokens.flatten(1, 2)
        prefix_tokens = 0
    if tokens.ndim != 3:
        raise UserError(f"patch tokens must be [B, N, C] or [B, h, w, C], not {list(tokens.shape)}")
    if tokens.shape[1] <= prefix_tokens:
        raise UserError(f"{tokens.shape[1]} tokens with prefix_tokens={prefix_tokens} leave no patch token")
    return tokens[:, prefix_tokens:]


def _check_form(loss: str, form: str, forms: tuple[str, ...]) -> None:
    if form not in forms:
        raise UserError(f"{loss} has no form {form!r}; choose from {', '.join(forms)}")


def patch_cosine(tokens: Tensor, form: str = "paper", *, prefix_tokens: int = 0) -> Tensor:
    """How alike the patch tokens of an image are, averaged over images: 0 orthogonal, 1 all parallel.

    ``tokens`` is [B, N, C] or [B, h, w, C]; the first ``prefix_tokens`` (class token, registers) are ignored.

    - ``"paper"``: P(h) = mean over i≠j of |cos(h_i, h_j)|, the paper's metric and its cosine loss. An N×N
      Gram matrix of unit vectors. With one patch there is no pair, and the loss is 0.
    - ``"diverse_vit"``: the signed mean over all i, j, i = j included, as Diverse-ViT's code has it. Equals
      the squared length of the mean unit token, so it costs O(N·C).

    A zero token has cosine 0 with every token. Returns a scalar; raises UserError for an unknown form.
    """
    _check_form("patch_cosine", form, COSINE_FORMS)
    with no_autocast(tokens):
        unit_BNC = unit(full(patch_tokens(tokens, prefix_tokens)))
        n = unit_BNC.shape[1]
        if form == "diverse_vit":
            return unit_BNC.mean(dim=1).square().sum(dim=-1).mean()
        # Taking the diagonal out as what it is, each token's squared length, leaves the sum exact to
        # rounding.
        gram_BNN = torch.bmm(unit_BNC, unit_BNC.transpose(1, 2))
        off_diagonal = gram_BNN.abs().sum(dim=(1, 2)) - gram_BNN.diagonal(dim1=1, dim2=2).sum(dim=1)
        return off_diagonal.mean() / max(n * (n - 1), 1)


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
    - ``"official"``: three-way, ``−log softmax(a_i, b_i, c_i)[0]``, where ``c_i = f_i·(mean of h over the 7×7
      places around i, without i itself)``; f is the patch embedding before the position embedding, detached.
      At the border only the places inside the image count. ``grid`` is (h, w); left out, a 4-axis input or a
      square says it.
    - ``"diverse_vit"``: as the paper's with unit vectors, and f keeps its gradient.

    With one patch there are no others, and the loss is 0. Returns a scalar; raises UserError for an unknown
    form, unequal shapes, or a grid that does not hold N tokens.
    """
    _check_form("patch_contrastive", form, CONTRASTIVE_FORMS)
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
    """Mean over the 7×7 places around each place, itself left out, places outside the grid left out."""
    b, n, c = tokens_BNC.shape
    height, width = grid or (math.isqrt(n), math.isqrt(n))
    if height * width != n:
        raise UserError(f"{n} patch tokens do not fill a {height}×{width} grid; pass grid=(height, width)")
    rows, columns = _band(height, tokens_BNC), _band(width, tokens_BNC)
    # Two small band matrices, one an axis: a box sum without unfolding 49 copies of the tokens.
    down = torch.matmul(rows, tokens_BNC.reshape(b, height, width * c)).view(b, height, width, c)
    box = torch.matmul(columns, down).reshape(b, n, c)
    count = torch.outer(rows.sum(1), columns.sum(1)).reshape(1, n, 1)
    return (box - tokens_BNC) / (count - 1).clamp_min(1)


def _band(size: int, like: Tensor) -> Tensor:
    place = torch.arange(size, device=like.device)
    return ((place[:, None] - place[None, :]).abs() <= NEIGHBOURHOOD // 2).to(like.dtype)
