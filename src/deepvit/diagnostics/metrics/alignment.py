"""Linear centred kernel alignment (CKA): do two blocks represent the same tokens by the same similarities?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cka_matrix(features: Sequence[Tensor]) -> Tensor:
    """Linear CKA of every pair of blocks: L matrices [n, C_l] of the same n tokens -> [L, L], in [0, 1].

    ``CKA(X, Y) = |Y^T X|^2 / (|X^T X| |Y^T Y|)`` (Frobenius) with columns centred over the n tokens;
    invariant to rotation and to scale. 1: the same up to these. Biased upwards when n is not well above the
    number of channels. NaN for features that do not vary. Source: Kornblith et al. 2019 (arXiv 1905.00414),
    equation 7 of the linear kernel. Computed from n x n Gram matrices in float32, so memory is L * n * n.
    """
    grams = []
    for block in features:
        centred = block.to(torch.float32) - block.to(torch.float32).mean(0, keepdim=True)
        gram = centred @ centred.mT
        # Scaled to length 1 one at a time: features of very different sizes then meet on equal terms.
        grams.append((gram / torch.linalg.vector_norm(gram)).flatten())
    flat = torch.stack(grams)
    return (flat @ flat.mT).clamp(0.0, 1.0)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of features [n, C] and [n, D] of the same n tokens, in [0, 1]; see ``cka_matrix``."""
    return float(cka_matrix([first, second])[0, 1])
