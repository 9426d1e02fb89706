"""Cosine loss: patch tokens of one image should point in different directions.

Shapes: B images, N patch tokens, C channels. Tokens come as [B, N, C] or, from windowed networks, as a grid
[B, h, w, C]. All arithmetic is in float32 (float64 stays float64), also under autocast.

Sources: Gong et al. 2021, "Vision Transformers with Patch Diversification" (arXiv 2104.12753), here "the
paper"; Diverse-ViT (Chen et al. 2022, arXiv 2203.06345, MIT licence).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepvit.losses.loss import Loss, Seen
from deepvit.losses.precision import full, no_autocast, unit
from deepvit.losses.tokens import patch_tokens


def patch_cosine(tokens: Tensor, form: str = "paper", *, prefix_tokens: int = 0) -> Tensor:
    """How alike the patch tokens of an image are, averaged over images: 0 orthogonal, 1 all parallel.

    ``tokens`` is [B, N, C] or [B, h, w, C]; the first ``prefix_tokens`` (class token, registers) are ignored.

    - ``"paper"``: P(h) = mean over i≠j of |cos(h_i, h_j)|, the paper's metric and its cosine loss. An N×N
      Gram matrix of unit vectors. With one patch there is no pair, and the loss is 0.
    - ``"diverse_vit"``: the signed mean over all i, j, i = j included, as Diverse-ViT's code has it. Equals
      the squared length of the mean unit token, so it costs O(N·C).

    A zero token has cosine 0 with every token. Returns a scalar; raises UserError for an unknown form.
    """
    LOSS.check_form(form)
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


def compute(seen: Seen, form: str, options: object) -> Tensor:
    """The loss of a watched forward pass."""
    return patch_cosine(seen.last(), form)


LOSS = Loss(
    name="patch_cosine",
    formula="mean over i≠j of |cos(h_i, h_j)|, the measure P(h) itself",
    source="Gong et al. 2021, arXiv 2104.12753; Diverse-ViT",
    forms={"paper": frozenset({"last"}), "diverse_vit": frozenset({"last"})},
    compute=compute,
    helps="alike patches",
    answers={
        "patches_alike": "a loss on the last block's patches that keeps them apart; no change to the network"
    },
    paper_weight=1.0,
)
