"""Metrics of attention collapse: tensors in, numbers out, one per image (PyTorch only).

A number that does not exist (no pair of heads, no direction in a zero vector) is NaN.
"""

from __future__ import annotations

from deepvit.collapse.metrics.alignment import cka_matrix, linear_cka
from deepvit.collapse.metrics.cross import (
    ColumnSample,
    all_columns,
    column_similarity,
    sample_columns,
    similar_blocks,
    similarity_matrix,
    weighted_columns,
)
from deepvit.collapse.metrics.maps import (
    attention_distance,
    attention_entropy,
    head_similarity,
    is_distribution,
    map_contrast,
)
from deepvit.collapse.metrics.sinks import sink_share, sink_value_norm
from deepvit.collapse.metrics.spectrum import effective_rank
from deepvit.collapse.metrics.tokens import (
    change,
    feature_similarity,
    high_norm_share,
    image_directions,
    image_similarity,
    patch_similarity,
    rank_one_distance,
    signed_patch_similarity,
    update_cosine,
)

__all__ = [
    "ColumnSample",
    "all_columns",
    "attention_distance",
    "attention_entropy",
    "change",
    "cka_matrix",
    "column_similarity",
    "effective_rank",
    "feature_similarity",
    "head_similarity",
    "high_norm_share",
    "image_directions",
    "image_similarity",
    "is_distribution",
    "linear_cka",
    "map_contrast",
    "patch_similarity",
    "rank_one_distance",
    "sample_columns",
    "signed_patch_similarity",
    "similar_blocks",
    "similarity_matrix",
    "sink_share",
    "sink_value_norm",
    "update_cosine",
    "weighted_columns",
]
