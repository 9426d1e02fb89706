"""From stretches of blocks to findings: which numbers each rests on. No words: those are the report's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deepvit.collapse.metrics.cross import similar_blocks
from deepvit.collapse.results import BlockFacts, Counts, Finding, Series
from deepvit.collapse.states import PATCHES_HIGH
from deepvit.collapse.stretches import Stretch, mean_at, number_at

# Neighbouring maps that differ less than this are told to be close, below the threshold for similar.
_NEARLY_ALIKE = 0.7
# What each kind of collapse rests on; the first is also told of the blocks before.
RESTS_ON = {
    "maps_alike": ("attention_similarity", "attention_similarity_centred", "head_similarity"),
    "uniform_maps": ("entropy", "map_contrast"),
    "sharp_maps": ("entropy", "map_rank"),
    "patches_alike": ("patch_similarity", "patch_similarity_signed", "rank_one_distance"),
}

Numbers = Mapping[str, Series]
Shares = Mapping[str, Sequence[float | None]]


def of_stretch(stretch: Stretch, blocks: Sequence[BlockFacts], series: Numbers, shares: Shares) -> Finding:
    """What a stretch of blocks shows."""
    inside = stretch.members
    keys = RESTS_ON[stretch.kind]
    numbers = _means(series, keys, inside)
    before = mean_at(series, keys[0], range(stretch.first))
    if before is not None and keys[0] in numbers:
        numbers[keys[0]]["before"] = before
    if stretch.kind == "sharp_maps":
        attended = [
            math.exp(value * math.log(blocks[p].keys or 1))
            for p in inside
            if (value := number_at(series, "entropy", p)) is not None
        ]
        most = float(blocks[inside[0]].keys or 0)
        numbers["attended_keys"] = {"here": sum(attended) / len(attended), "of": most}
    return Finding(
        stretch.kind,
        stretch.kind,
        [blocks[position].index for position in sorted({stretch.start, *inside})],
        numbers,
        share(shares.get(stretch.kind), inside),
        stretch.to_end,
    )


def of_untrained(blocks: Sequence[BlockFacts], series: Numbers, shares: Shares) -> Finding:
    """That the softmax maps of every block are near uniform."""
    positions = [p for p in range(len(blocks)) if number_at(series, "entropy", p) is not None]
    # Of the softmax maps: what mixing makes of near-uniform maps is a matter of its signs.
    keys = ("entropy", "softmax_similarity", "attention_similarity", "attention_similarity_centred")
    return Finding(
        "untrained_or_uniform",
        "untrained_or_uniform",
        [blocks[position].index for position in positions],
        _means(series, keys, positions),
        share(shares.get("untrained"), positions),
        to_end=True,
    )


def notices(blocks: Sequence[BlockFacts], series: Numbers, kinds: set[str], uniform: bool) -> list[Finding]:
    """What the numbers say besides: worth knowing, and no collapse by the rules."""
    found = []
    deep = range(len(blocks) // 2, len(blocks))
    similarity = mean_at(series, "attention_similarity", deep)
    if not uniform and "maps_alike" not in kinds and similarity is not None and similarity >= _NEARLY_ALIKE:
        numbers = {"attention_similarity": {"here": similarity}}
        found.append(Finding("notice", "close_maps", [blocks[p].index for p in deep], numbers))
    mixed = [p for p, block in enumerate(blocks) if block.mixed]
    numbers = _means(series, ("softmax_similarity", "attention_similarity"), mixed)
    if len(numbers) == 2 and not uniform:  # that finding has both numbers itself
        found.append(Finding("notice", "mixed_maps", [blocks[p].index for p in mixed], numbers))
    last = max(
        (p for p in range(len(blocks)) if number_at(series, "patch_similarity", p) is not None), default=None
    )
    if last is not None and "patches_alike" not in kinds:
        numbers = _means(series, ("patch_similarity",), [last])
        if numbers["patch_similarity"]["here"] >= PATCHES_HIGH:
            if similarity is not None:
                numbers["attention_similarity"] = {"deeper_half": similarity}
            found.append(Finding("notice", "patches_high", [blocks[last].index], numbers))
    return found


def counts_of(blocks: Sequence[BlockFacts], series: Numbers) -> Counts:
    """How many blocks count as similar, and the patch similarity at both ends: stated in every verdict."""
    counts = Counts(mixed=sum(block.mixed for block in blocks))
    if "attention_similarity" in series:
        values = series["attention_similarity"].values
        known = [value for value in values if value is not None]
        counts.similar, counts.comparable = len(similar_blocks(values)), len(known)
        counts.lowest, counts.highest = min(known, default=None), max(known, default=None)
    if "patch_similarity" in series:
        pairs = zip(blocks, series["patch_similarity"].values, strict=True)
        found = [[float(block.index), value] for block, value in pairs if value is not None]
        counts.patches = [found[0], found[-1]] if found else []
    return counts


def share(values: Sequence[float | None] | None, positions: Sequence[int]) -> float | None:
    """Mean over blocks of the share of images in which each is in a state."""
    known = [value for p in positions if values is not None and (value := values[p]) is not None]
    return sum(known) / len(known) if known else None


def _means(series: Numbers, keys: Sequence[str], positions: Sequence[int]) -> dict[str, dict[str, float]]:
    found = {key: mean_at(series, key, positions) for key in keys}
    return {key: {"here": value} for key, value in found.items() if value is not None}
