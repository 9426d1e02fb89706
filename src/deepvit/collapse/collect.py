"""From running sums to the result structure: NaN becomes None, rows become lists over blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deepvit.collapse.attention_sums import AttentionSums
from deepvit.collapse.catalogue import METRICS
from deepvit.collapse.metrics.cross import SIMILAR_RULE, SIMILAR_THRESHOLD, similar_blocks
from deepvit.collapse.moments import Moments
from deepvit.collapse.results import Matrix, Series, SimilarBlocks
from deepvit.collapse.rows import Row
from deepvit.collapse.token_sums import TokenSums

Shares = dict[str, list[float | None]]


def all_series(attention: AttentionSums, tokens: TokenSums) -> dict[str, Series]:
    """Every metric of the catalogue; those that no block has are left out."""
    size = len(attention.rows)
    result = {}
    for key in METRICS:
        if key == "image_similarity":
            between = [real(value) for value in tokens.between_images()]
            if any(value is not None for value in between):
                result[key] = Series(between, [None] * size, tokens.images_between)
            continue
        rows = attention.series.get(key) or tokens.series.get(key) or {}
        values, spread = per_row(rows, size)
        if any(value is not None for value in values):
            result[key] = Series(values, spread, max(moments.images for moments in rows.values()))
    return result


def per_row(rows: Mapping[int, Moments], size: int) -> tuple[list[float | None], list[float | None]]:
    """Mean and deviation of each row that has one number per image."""
    values: list[float | None] = [None] * size
    spread: list[float | None] = [None] * size
    for number, moments in rows.items():
        values[number] = real(float(moments.mean))
        if values[number] is not None:
            spread[number] = real(float(moments.deviation))
    return values, spread


def per_head(attention: AttentionSums) -> dict[str, list[list[float | None] | None]]:
    """Entropy and attention distance per block and head."""
    result: dict[str, list[list[float | None] | None]] = {}
    for key, rows in attention.per_head.items():
        heads: list[list[float | None] | None] = [None] * len(attention.rows)
        for number, moments in rows.items():
            heads[number] = [real(value) for value in moments.mean.tolist()]
        result[key] = heads
    return result


def all_matrices(attention: AttentionSums, tokens: TokenSums) -> dict[str, Matrix]:
    """Similarity of all pairs of blocks whose maps have one shape (None elsewhere), and CKA."""
    size = len(attention.rows)
    result: dict[str, Matrix] = {}
    for key, groups in attention.matrices.items():
        matrix: Matrix = [[None] * size for _ in range(size)]
        for group, moments in groups.items():
            mean = moments.mean.tolist()
            members = attention.groups[group]
            for i, p in enumerate(members):
                for j, q in enumerate(members):
                    matrix[p][q] = real(mean[i][j])
        result[key] = matrix
    result["cka"] = tokens.alignment()
    return result


def shares(attention: AttentionSums, tokens: TokenSums) -> Shares:
    """Share of images in which each block is "alike", "uniform", "sharp", "similar", or "patches" alike."""
    size = len(attention.rows)
    states = {**attention.states, **tokens.states}
    return {state: per_row(rows, size)[0] for state, rows in states.items()}


def similar(rows: Sequence[Row], series: Mapping[str, Series], images_share: Shares) -> SimilarBlocks:
    """The count of similar blocks, by the numbers of the blocks."""
    found = series.get("attention_similarity")
    values = found.values if found else [None] * len(rows)
    return SimilarBlocks(
        threshold=SIMILAR_THRESHOLD,
        rule=SIMILAR_RULE,
        blocks=[rows[number].facts.index for number in similar_blocks(values)],
        comparable=sum(value is not None for value in values),
        images_share=images_share.get("similar", [None] * len(rows)),
    )


def real(value: float) -> float | None:
    """The number, or ``None`` for NaN and infinities."""
    return value if math.isfinite(value) else None
