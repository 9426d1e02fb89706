"""Cross-layer attention similarity: do two blocks attend alike?

Legend: B images, L blocks, H heads, Q queries, K keys (tokens attended to), S sampled keys.
A map is A[B,H,Q,K]; its *column* A[b,h,:,t] is how much token t gives to every output token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepvit.collapse.metrics.metric import Metric

SIMILAR_THRESHOLD = 0.9
SIMILAR_RULE = (
    "a block counts as similar when the mean attention similarity (cosine of columns, averaged over heads, "
    f"tokens and images) with the previous block is at least {SIMILAR_THRESHOLD}"
)


@dataclass(frozen=True)
class ColumnSample:
    """Which columns of a map are compared, and the weight of each in the mean (the weights sum to 1)."""

    index: Tensor
    weight: Tensor
    exact: bool


def all_columns(keys: int) -> ColumnSample:
    """Every column, with the same weight: the exact mean over tokens."""
    return ColumnSample(torch.arange(keys), torch.full((keys,), 1.0 / keys), True)


def sample_columns(keys: int, prefix: int, limit: int) -> ColumnSample:
    """At most ``limit`` columns, the same ones every time: all prefix tokens, and patches evenly spaced.

    The patches that were taken carry the weight of all patches, so that the mean estimates the mean over all
    tokens. Every column is taken when there are no more than ``limit``.
    """
    if keys <= limit:
        return all_columns(keys)
    prefix = min(prefix, limit - 1)
    count = limit - prefix
    patches = keys - prefix
    # The middle of each of `count` equal stretches. A stride that divides the width of the grid would visit
    # a few columns of the image only; uneven rounding of patches / count avoids most of that.
    picked = prefix + ((torch.arange(count, dtype=torch.float64) + 0.5) * patches / count).long()
    weight = torch.cat([torch.full((prefix,), 1.0 / keys), torch.full((count,), patches / keys / count)])
    return ColumnSample(torch.cat([torch.arange(prefix), picked]), weight, False)


def weighted_columns(maps: Tensor, columns: ColumnSample, centred: bool = False) -> tuple[Tensor, Tensor]:
    """Columns of maps [B,H,Q,K] without their length: ([B,H,S,Q] float32, [B,H,S] whether there is one).

    Each is scaled to length ``sqrt(weight)``: a plain inner product of two blocks is then the weighted sum of
    cosines.

    ``centred`` first takes the mean over queries and keys from each head's map; for a softmax map that is
    1/K exactly. A column of zeros has no direction: it stays zero and is marked absent. A centred column
    counts as zero when it is not above the rounding of its data type, so exactly uniform maps have no
    centred columns.
    """
    picked = maps if columns.exact else maps.index_select(-1, columns.index.to(maps.device))
    values = picked.mT.to(torch.float32)
    floor: Tensor | float = torch.finfo(torch.float32).tiny
    if centred:
        mean = maps.mean(dim=(-2, -1), keepdim=True, dtype=torch.float32)
        values = values - mean
        resolution = 8 * torch.finfo(maps.dtype).eps * math.sqrt(maps.shape[-2])
        floor = (mean.abs() * resolution).clamp_min(torch.finfo(torch.float32).tiny)[..., 0]
    length = torch.linalg.vector_norm(values, dim=-1)
    present = length > floor
    root = columns.weight.to(maps.device).sqrt()
    scale = torch.where(present, root / length.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return values.mul_(scale[..., None]) if centred else values * scale[..., None], present


def pairwise(units: Tensor, present: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean cosine of every pair, of what ``weighted_columns`` gave for L blocks -> [B,L,L].

    ``units`` [B,L,G,S,Q], ``present`` [B,L,G,S], ``weight`` [S]; ``G`` is whatever the mean also runs over
    (heads). A column that is absent on both sides is left out of the mean; absent on one side it counts as
    0. NaN when nothing is left. One matrix product, no loop over pairs.
    """
    flat = units.flatten(2)
    total = flat @ flat.mT
    seen = present.to(torch.float32)
    mass = (seen * weight.to(units.device)).flatten(2)
    each = mass.sum(-1)
    both = mass @ seen.flatten(2).mT
    either = each[:, :, None] + each[:, None, :] - both
    return torch.where(either > 0, total / either, torch.nan).clamp(-1.0, 1.0)


def similarity_matrix(
    maps: Sequence[Tensor], columns: ColumnSample | None = None, centred: bool = False
) -> Tensor:
    """Attention similarity of every pair of blocks: L maps [B,H,Q,K] -> [B,L,L], one matrix an image.

    ``S[p,q] = mean over heads h and tokens t of cos(A^p[h,:,t], A^q[h,:,t])``, in [-1, 1] (0 to 1 for softmax
    maps). 1: the two blocks attend alike; near-uniform maps also give 1, which ``centred=True`` (cosine of
    A - mean(A)) tells apart. A token that receives exactly nothing in both blocks is left out of the mean.

    Source: DeepViT (arXiv 2103.11886), same head and same token in two blocks; taking the mean over heads,
    tokens and images is our choice. Raises ValueError for maps of different shapes: they are not comparable.
    """
    if len({tuple(block.shape) for block in maps}) != 1:
        raise ValueError(f"maps of different shapes cannot be compared: {[tuple(m.shape) for m in maps]}")
    columns = columns or all_columns(maps[0].shape[-1])
    pairs = [weighted_columns(block, columns, centred) for block in maps]
    return pairwise(
        torch.stack([p[0] for p in pairs], 1), torch.stack([p[1] for p in pairs], 1), columns.weight
    )


def column_similarity(first: Tensor, second: Tensor, centred: bool = False) -> Tensor:
    """Attention similarity of two maps [B,H,Q,K] -> [B], in [-1, 1]; see ``similarity_matrix``."""
    return similarity_matrix([first, second], centred=centred)[:, 0, 1]


def similar_blocks(with_previous: Sequence[float | None]) -> list[int]:
    """The blocks whose attention similarity with the previous block is at least 0.9.

    The threshold is the paper's as third parties note it; that it is applied to the mean over heads, tokens
    and images is our rule, which every report states. ``None``: no comparable previous block.
    """
    return [
        block for block, value in enumerate(with_previous) if value is not None and value >= SIMILAR_THRESHOLD
    ]


# fmt: off
SIMILARITY = Metric(
    "attention_similarity", "Attention similarity with the previous block", "cosine", -1.0, 1.0, "high",
    "mean over images, heads h and tokens t of cos(A^p[h,:,t], A^{p-1}[h,:,t])",
    "1: the block attends exactly as the one before it, so its attention adds nothing new. "
    "A block from 0.9 on counts as similar.",
    "DeepViT (arXiv 2103.11886); taking the mean over heads, tokens and images is our choice",
)
SIMILARITY_CENTRED = Metric(
    "attention_similarity_centred", "The same on centred maps", "cosine", -1.0, 1.0, "high",
    "as attention similarity, on A - mean(A) (the mean of a softmax map is 1/N)",
    "Near-uniform maps have cosine 1 with everything although nothing was learned; here they have not. "
    "High in both: the blocks share one learned map.",
    "ours, to tell collapse from uniformity",
)
SIMILARITY_BEFORE_MIXING = Metric(
    "softmax_similarity", "Similarity of the maps before heads are mixed", "cosine", -1.0, 1.0, "high",
    "attention similarity of the softmax maps P, before Re-attention or talking heads mix them",
    "Differs from attention similarity only in models that mix heads: what the mixing itself changed.",
    "ours",
)
# fmt: on
