"""Properties of the attention maps of one block: entropy, distance, and how alike its heads are.

Legend: B images, H heads, Q queries, K keys.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from deepvit.collapse.metrics.cross import ColumnSample, all_columns, pairwise, weighted_columns
from deepvit.collapse.metrics.metric import Metric


def attention_entropy(maps: Tensor) -> Tensor:
    """Entropy of softmax maps [B,H,Q,K] -> [B,H], as a share of log K, in [0, 1].

    ``mean over queries of -sum_t P[q,t] log P[q,t] / log K`` (Shannon). 1: every query attends to all
    tokens alike; 0: to one token. NaN for a single key, where it cannot vary. As a measure of training gone
    wrong: Zhai et al. (arXiv 2303.06296).

    Raises ValueError when an entry is negative or a row does not sum to 1 (maps after Re-attention or talking
    heads): they are no distributions, so they have no entropy. Measure the softmax map before the mixing.
    """
    maps = maps.to(torch.float32)
    keys = maps.shape[-1]
    if not is_distribution(maps):
        raise ValueError("entropy needs maps with entries >= 0 and rows that sum to 1")
    if keys == 1:
        return torch.full(maps.shape[:2], torch.nan, device=maps.device)
    entropy: Tensor = torch.special.entr(maps).sum(-1).mean(-1) / math.log(keys)
    return entropy.clamp(0.0, 1.0)


def is_distribution(maps: Tensor) -> bool:
    """Whether every row of the maps [..., K] is a distribution over keys, up to half precision."""
    return float(maps.amin()) >= 0 and float((maps.sum(-1) - 1).abs().amax()) <= 0.02


def map_contrast(maps: Tensor) -> Tensor:
    """How far maps [B,H,Q,K] are from uniform -> [B]; 0 is uniform, and there is no upper end.

    ``sqrt(sum_h |A_h - mean(A_h)|^2 / sum_h |mean(A_h)|^2)``, means over queries and keys, for maps of any
    sign: unlike entropy it is defined after Re-attention and talking heads. For softmax maps near uniform,
    ``1 - entropy = contrast^2 / (2 log K)`` to second order. One-hot maps have sqrt(K - 1). Ours.
    """
    variance, mean = torch.var_mean(maps.to(torch.float32), dim=(-2, -1), correction=0)
    contrast: Tensor = (variance.sum(-1) / mean.square().sum(-1)).sqrt()
    return contrast


def cell_centres(rows: int, columns: int, like: tuple[int, int] | None = None) -> Tensor:
    """Centres [rows*columns, 2] of a grid's cells, in cells of the grid ``like`` over the same area."""
    height, width = like or (rows, columns)
    y = (torch.arange(rows, dtype=torch.float32) + 0.5) * height / rows
    x = (torch.arange(columns, dtype=torch.float32) + 0.5) * width / columns
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)


def attention_distance(
    maps: Tensor, grid: tuple[int, int], prefix: int = 0, key_grid: tuple[int, int] | None = None
) -> Tensor:
    """Mean attention distance of softmax maps [B,H,Q,K] -> [B,H], in patches of ``grid``.

    ``mean over patch queries i of sum_j P[i,j] |pos_i - pos_j| / sum_j P[i,j]`` over patch keys j: prefix
    tokens have no place and are left out on both sides. 0: patches look at themselves only. At most the
    diagonal of the grid. ``key_grid`` is the grid of the keys when keys are pooled. Times the pixels of a
    patch it is a distance in pixels. NaN when no patch attends to a patch. Source: Dosovitskiy et al.
    (arXiv 2010.11929), where the distance is in pixels. Raises ValueError when the tokens are not prefix +
    grid.
    """
    key_rows, key_columns = key_grid or grid
    if maps.shape[-2] != prefix + grid[0] * grid[1] or maps.shape[-1] != prefix + key_rows * key_columns:
        raise ValueError(f"maps of shape {tuple(maps.shape)} are not {prefix} + {grid} tokens")
    weight = maps[..., prefix:, prefix:].to(torch.float32)
    distance = torch.cdist(cell_centres(*grid), cell_centres(key_rows, key_columns, grid)).to(maps.device)
    received = weight.sum(-1)
    travelled = torch.einsum("bhqk,qk->bhq", weight, distance)
    return torch.nanmean(torch.where(received > 0, travelled / received, torch.nan), dim=-1)


def head_similarity(maps: Tensor, columns: ColumnSample | None = None, centred: bool = False) -> Tensor:
    """How alike the heads of a block attend: maps [B,H,Q,K] -> [B], in [-1, 1] (0 to 1 for softmax maps).

    ``mean over pairs of heads g < h and tokens t of cos(A[g,:,t], A[h,:,t])``. 1: all heads attend alike.
    NaN for one head. DeepViT (arXiv 2103.11886) shows that heads stay different where blocks do not, for
    neighbouring heads; we take all pairs, because the order of heads means nothing.
    """
    columns = columns or all_columns(maps.shape[-1])
    return head_similarity_of(*weighted_columns(maps, columns, centred), columns.weight)


def head_similarity_of(units: Tensor, present: Tensor, weight: Tensor) -> Tensor:
    """``head_similarity`` from what ``weighted_columns`` returned: [B,H,S,Q], [B,H,S], weights [S] -> [B]."""
    heads = units.shape[1]
    matrix = pairwise(units[:, :, None], present[:, :, None], weight)
    upper = torch.ones(heads, heads, dtype=torch.bool, device=units.device).triu(1)
    # Pairs without a common column have no cosine; a mean of nothing (one head) is NaN.
    return torch.nanmean(matrix[:, upper], dim=-1)


def _distance(maps: Tensor, layout: Any) -> Tensor | None:
    """The distance where queries and keys are patches of grids after the same prefix."""
    if not (layout.query_grid and layout.key_grid and layout.query_prefix == layout.key_prefix):
        return None
    return attention_distance(maps, layout.query_grid, layout.query_prefix, layout.key_grid)


# fmt: off
HEADS = Metric(
    "head_similarity", "Similarity of the heads within a block", "cosine", -1.0, 1.0, "high",
    "mean over images, tokens t and pairs of heads g < h of cos(A[g,:,t], A[h,:,t])",
    "Low: the heads look at different things, which is what Re-attention builds new maps from.",
    "DeepViT shows neighbouring heads; all pairs is our choice",
    needs=("columns",), compute=lambda columns: head_similarity_of(*columns),
)
ENTROPY = Metric(
    "entropy", "Entropy of the attention maps", "share of log N", 0.0, 1.0, "both",
    "mean over queries of -sum_t P[q,t] log P[q,t], divided by log N; of softmax maps only",
    "1: every query looks at all tokens alike. 0: every query looks at one token.",
    "Shannon; collapse of entropy: Zhai et al. (arXiv 2303.06296)",
    needs=("softmax",), compute=attention_entropy,
)
CONTRAST = Metric(
    "map_contrast", "Contrast of the attention maps", "ratio", 0.0, None, "low",
    "rms of A - mean(A) over all heads, divided by the rms of mean(A); of the maps that multiply V",
    "0: uniform maps, also where heads are mixed and entropy is not defined.",
    "ours; for softmax maps near uniform 1 - entropy is contrast^2 / (2 log N)",
    needs=("maps",), compute=map_contrast,
)
DISTANCE = Metric(
    "attention_distance", "Mean attention distance", "patches", 0.0, None, "none",
    "mean over patch queries i of sum_j P[i,j] |pos_i - pos_j|, over patches j, weights made to sum to 1",
    "How far a patch looks. Multiply by the pixels of a patch for pixels.",
    "Dosovitskiy et al. (arXiv 2010.11929)",
    needs=("softmax", "map_layout"), compute=_distance,
)
# fmt: on
