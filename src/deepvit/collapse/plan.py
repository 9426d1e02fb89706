"""How much is measured on how many images: what keeps a diagnosis cheap, decided once and reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepvit.collapse.metrics import ColumnSample, sample_columns
from deepvit.collapse.metrics.spectrum import ROWS
from deepvit.collapse.rows import Row

# Columns x queries of one head's map that are compared across blocks: all of them up to 256 tokens.
_MAP_ENTRIES = 256 * 256
# A compared column count below this would make the mean over tokens a matter of luck.
_FEWEST_COLUMNS = 16


@dataclass(frozen=True)
class Plan:
    """Which images and tokens each group of metrics is taken on; the same for every batch size.

    ``attention_every``: attention metrics on each k-th image. ``rank_every``: effective ranks on each k-th
    image. ``patch_limit``: patches of an image that patch similarity, feature similarity and token rank
    see. ``rank_rows``: queries of a map that its rank sees. ``alignment_tokens``: tokens that CKA rests on,
    spread over the images; 0 leaves it out. ``attention_chunk`` and ``token_chunk``: images in one forward
    pass with and without maps, so that memory stays bounded. ``metrics``: keys of those that are taken besides
    the similarities of blocks; ``None`` is all.
    """

    attention_every: int = 1
    rank_every: int = 1
    patch_limit: int = 256
    rank_rows: int = ROWS
    alignment_tokens: int = 1024
    alignment_per_image: int = 16
    attention_chunk: int = 8
    token_chunk: int = 32
    metrics: frozenset[str] | None = None

    def wants_attention(self, image: int) -> bool:
        """Whether attention is measured on the image with this number (counted from 0)."""
        return image % self.attention_every == 0

    def wants_rank(self, image: int) -> bool:
        """Whether effective ranks are measured on this image."""
        return self.rank_every > 0 and image % self.rank_every == 0

    def columns(self, row: Row) -> ColumnSample:
        """The columns of a row's maps that are compared across blocks."""
        limit = max(_FEWEST_COLUMNS, _MAP_ENTRIES // row.layout.queries)
        return sample_columns(row.keys, row.layout.key_prefix, limit)


def spread_evenly(total: int, count: int, device: torch.device | None = None) -> Tensor:
    """At most ``count`` of ``total`` places, evenly spaced; all when there are fewer."""
    if total <= count:
        return torch.arange(total, device=device)
    return ((torch.arange(count, dtype=torch.float64) + 0.5) * total / count).long().to(device)


def make_plan(
    rows: Sequence[Row],
    images: int | None,
    attention_images: int = 64,
    rank_images: int = 16,
    memory_mb: int = 512,
) -> Plan:
    """A plan for ``images`` images (``None``: unknown); one forward pass stays near ``memory_mb``."""
    # Unknown length: every fourth image, as with the default 256 images.
    attention_every = 4 if images is None else -(-images // max(1, min(images, attention_images)))
    rank_step = 4 if images is None else -(-images // max(1, min(images, rank_images)) // attention_every)
    plan = Plan(attention_every=attention_every, rank_every=attention_every * max(1, rank_step))
    compared = sum(
        2 * row.layout.windows * row.layout.heads * len(plan.columns(row).index) * row.layout.queries
        for row in rows
    )
    # A map is alive about six times at once: scores, softmax, the check, and the arithmetic of one metric.
    one_map = max(6 * r.layout.windows * r.layout.heads * r.layout.queries * r.keys for r in rows)
    tokens = sum(min(row.patches, plan.patch_limit) * row.tokens.channels for row in rows if row.tokens)
    # What the model itself holds in a forward pass: a few copies of the tokens, and the MLP's four times as wide.
    activations = max((12 * row.tokens.tokens * row.tokens.channels for row in rows if row.tokens), default=0)
    budget = memory_mb * 2**20 // 4
    return Plan(
        attention_every=plan.attention_every,
        rank_every=plan.rank_every,
        alignment_per_image=16 if images is None else max(1, -(-plan.alignment_tokens // images)),
        attention_chunk=max(1, min(16, budget // (compared + one_map + tokens))),
        token_chunk=max(1, min(64, budget // max(1, 2 * tokens + activations))),
    )
