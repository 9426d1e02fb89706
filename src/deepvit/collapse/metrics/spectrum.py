"""Effective rank: about how many directions a matrix really has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deepvit.collapse.metrics.metric import Metric


def effective_rank(matrix: Tensor) -> Tensor:
    """Effective rank of matrices [..., M, N] -> [...], from 1 to min(M, N).

    ``exp(-sum_i p_i log p_i)``, ``p_i = s_i / sum_j s_j`` with the singular values s. 1: a rank-one matrix
    (all queries attend alike; all tokens parallel); k for k orthogonal directions of the same strength. NaN
    for a matrix of zeros. Computed in float64 from the eigenvalues of the smaller Gram matrix. Source: Roy
    & Vetterli, "The effective rank: a measure of effective dimensionality", 2007.
    """
    values = matrix.to(torch.float64)
    gram = values @ values.mT if values.shape[-2] <= values.shape[-1] else values.mT @ values
    with _one_thread():
        singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = singular / singular.sum(-1, keepdim=True)
    entropy: Tensor = torch.special.entr(share).sum(-1)
    return entropy.exp()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for many small eigenproblems: two threads of LAPACK wait for each other 30 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


ROWS = 128
"""Queries of a map that its rank sees, evenly spaced, where there are more (``Plan.rank_rows``)."""

# fmt: off
MAP_RANK = Metric(
    "map_rank", "Effective rank of the attention maps", "patterns", 1.0, None, "low",
    "exp of the entropy of the singular values, each divided by their sum, of the map's queries: all, or "
    f"{ROWS} of them, evenly spaced (then at most {ROWS})",
    "About how many different rows the map is made of; 1: all queries look at the same tokens.",
    "Roy & Vetterli 2007",
    needs=("few_rows",), compute=lambda rows: effective_rank(rows).mean(-1),
)
TOKEN_RANK = Metric(
    "token_rank", "Effective rank of the patch tokens", "directions", 1.0, None, "low",
    "exp of the entropy of the singular values of the patch tokens [N, C], each divided by their sum",
    "About how many directions the patches of one image fill.",
    "Roy & Vetterli 2007",
    needs=("few_patches",), compute=effective_rank,
)
# fmt: on
