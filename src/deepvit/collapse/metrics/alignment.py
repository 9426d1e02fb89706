"""Linear centred kernel alignment (CKA): do two blocks relate the same tokens to each other alike?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cka_matrix(features: Sequence[Tensor], debiased: bool = True) -> Tensor:
    """Linear CKA of every pair of blocks: L matrices [n, C_l] of the same n tokens -> [L, L].

    ``CKA(X, Y) = <K, L> / (|K| |L|)`` with the Gram matrices K = X X^T and L = Y Y^T, centred; for the
    plain form that is ``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` of centred features. Invariant to rotation and
    scale. 1: the same up to these; 0: unrelated. The plain form (Kornblith et al. 2019, arXiv 1905.00414),
    in [0, 1], is biased upwards unless n is far above the number of channels; ``debiased`` takes the
    unbiased estimate of HSIC (Song et al. 2012), by the U-centring of Szekely and Rizzo 2014, and may be
    slightly negative. NaN for features that do not vary. Raises ValueError for fewer than 4 tokens. Memory
    is 2 L n^2 float32 numbers.
    """
    count = features[0].shape[0]
    if count < 4:
        raise ValueError(f"CKA needs at least 4 tokens, got {count}")
    grams = []
    for block in features:
        centred = block.to(torch.float32) - block.to(torch.float32).mean(0, keepdim=True)
        gram = centred @ centred.mT
        if debiased:
            gram = u_centred(gram)
        # Scaled to length 1 one at a time: features of very different sizes then meet on equal terms.
        grams.append((gram / torch.linalg.vector_norm(gram)).flatten())
    flat = torch.stack(grams)
    product = torch.zeros(len(grams), len(grams), dtype=torch.float64, device=flat.device)
    # A million products each: summed in float64, a piece at a time so that no double copy of all is made.
    for piece in flat.split(1 << 16, dim=1):
        product += piece.double() @ piece.double().mT
    return product.clamp(-1.0, 1.0)


def u_centred(gram: Tensor) -> Tensor:
    """Gram matrix [n, n] so centred that the inner product of two is n(n-3) times an unbiased HSIC."""
    count = gram.shape[0]
    gram = gram - torch.diag(gram.diagonal())
    rows = gram.sum(0)
    centred = gram - (rows[:, None] + rows[None, :]) / (count - 2) + rows.sum() / ((count - 1) * (count - 2))
    return centred - torch.diag(centred.diagonal())


def linear_cka(first: Tensor, second: Tensor, debiased: bool = True) -> float:
    """Linear CKA of features [n, C] and [n, D] of the same n tokens; see ``cka_matrix``."""
    return float(cka_matrix([first, second], debiased)[0, 1])
