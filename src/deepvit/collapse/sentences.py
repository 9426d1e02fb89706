"""The words of a verdict: every sentence names its blocks and the numbers that it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from deepvit.collapse.findings import Stretch, mean_at, number_at
from deepvit.collapse.metrics.cross import SIMILAR_THRESHOLD, similar_blocks
from deepvit.collapse.results import BlockFacts, Cure, Finding, Series
from deepvit.collapse.states import PATCHES_ALIKE, PATCHES_HIGH

_TOWARDS = {
    "maps_alike": "all maps alike",
    "uniform_maps": "maps uniform",
    "sharp_maps": "maps too sharp",
    "patches_alike": "patches alike",
}
# Neighbouring maps that differ less than this are told to be close, below the threshold for similar.
_NEARLY_ALIKE = 0.7
_DIFFERENT = 0.5

Numbers = Mapping[str, Series]


def headline(kind: str, blocks: Sequence[BlockFacts], stretch: Stretch | None) -> str:
    """One line: whether it collapses, towards what, from which block on."""
    if kind == "untrained_or_uniform":
        return "Untrained or uniform: the maps of every block are near uniform"
    if stretch is None:
        return "No collapse"
    if stretch.to_end:
        return f"Collapse: {_TOWARDS[kind]} from block {blocks[stretch.start].index} on"
    return f"Collapse: {_TOWARDS[kind]} in {_span(sorted({stretch.start, *stretch.members}), blocks)}"


def describe(stretch: Stretch, blocks: Sequence[BlockFacts], series: Numbers) -> tuple[str, dict[str, float]]:
    """A finding in a sentence, and its numbers by what they are."""
    members = sorted({stretch.start, *stretch.members})
    where = _span(members, blocks)
    inside = stretch.members
    before = [p for p in range(len(blocks)) if p < stretch.first]
    if stretch.kind == "maps_alike":
        keys = ("attention_similarity", "attention_similarity_centred")
        own, centred = (mean_at(series, key, inside) for key in keys)
        words = f"The maps of {where} are alike: attention similarity with the previous block {_n(own)}"
        words += f" ({_n(centred)} on centred maps, so it is not mere uniformity)"
        words += _before(series, "attention_similarity", before)
        heads = mean_at(series, "head_similarity", inside)
        if heads is not None:
            words += f". The heads of one block are alike by {_n(heads)}"
            words += ", so mixing them can make new maps" if heads < _DIFFERENT else ""
        return words + ".", _evidence(series, (*keys, "head_similarity"), inside)
    if stretch.kind == "uniform_maps":
        entropy = mean_at(series, "entropy", inside)
        words = f"The maps of {where} are near uniform: entropy {_n(entropy, 3)} of at most 1"
        words += _before(series, "entropy", before, 3) + "; their attention only averages over the image"
        return words + ".", _evidence(series, ("entropy", "map_contrast"), inside)
    if stretch.kind == "sharp_maps":
        entropy = mean_at(series, "entropy", inside)
        keys_seen = [
            math.exp(value * math.log(blocks[p].keys or 1))
            for p in inside
            if (value := number_at(series, "entropy", p)) is not None
        ]
        seen = sum(keys_seen) / len(keys_seen)
        words = f"The maps of {where} are too sharp: entropy {_n(entropy, 3)}, so a query attends to about "
        words += f"{seen:.1f} of {blocks[inside[0]].keys} tokens" + _before(series, "entropy", before, 3)
        return words + ".", _evidence(series, ("entropy", "map_rank"), inside)
    similarity = mean_at(series, "patch_similarity", inside)
    distance = mean_at(series, "rank_one_distance", inside)
    words = f"The patches that leave {where} are alike: patch similarity {_n(similarity)}, "
    words += f"distance from rank one {_n(distance)}" + _before(series, "patch_similarity", before)
    if stretch.first == 0:
        words += (
            "; they are so from the first block on, so look at the images and the patch embedding as well"
        )
    return words + ".", _evidence(
        series, ("patch_similarity", "patch_similarity_signed", "rank_one_distance"), inside
    )


def describe_everywhere(positions: Sequence[int], series: Numbers) -> tuple[str, dict[str, float]]:
    """The finding that all maps are near uniform."""
    # Of the softmax maps: what mixing makes of near-uniform maps is a matter of its signs.
    similar = "softmax_similarity" if "softmax_similarity" in series else "attention_similarity"
    keys = ("entropy", similar, "attention_similarity_centred")
    entropy, similarity, centred = (mean_at(series, key, positions) for key in keys)
    words = f"Every block attends to all tokens nearly alike: entropy {_n(entropy, 3)} of at most 1"
    if similarity is not None and similarity >= SIMILAR_THRESHOLD:
        words += (
            f". Their similarity with the previous block, {_n(similarity)}, says nothing: any two uniform"
        )
        words += (
            f" maps are alike; on centred maps it is {_n(centred)}" if centred is not None else " maps are"
        )
    return words + ".", _evidence(series, keys, positions)


def notices(blocks: Sequence[BlockFacts], series: Numbers, kinds: set[str], uniform: bool) -> list[Finding]:
    """What the figures say besides: worth knowing, and no collapse by the rules."""
    found = []
    deep = list(range(len(blocks) // 2, len(blocks)))
    similarity = mean_at(series, "attention_similarity", deep)
    last = max(
        (p for p in range(len(blocks)) if number_at(series, "patch_similarity", p) is not None), default=None
    )
    patches = None if last is None else number_at(series, "patch_similarity", last)
    if not uniform and "maps_alike" not in kinds and similarity is not None and similarity >= _NEARLY_ALIKE:
        words = f"In the deeper half neighbouring maps are close to alike, {_n(similarity)} on the average"
        found.append(
            Finding(
                "notice", [blocks[p].index for p in deep], words + ".", {"attention similarity": similarity}
            )
        )
    mixed = [p for p, block in enumerate(blocks) if block.mixed]
    softmax, own = (
        mean_at(series, "softmax_similarity", mixed),
        mean_at(series, "attention_similarity", mixed),
    )
    if softmax is not None and own is not None:
        words = f"Where heads are mixed ({_span(mixed, blocks)}) the softmax maps are alike by "
        words += f"{_n(softmax)} with the previous block, the mixed maps by {_n(own)}"
        found.append(
            Finding(
                "notice",
                [blocks[p].index for p in mixed],
                words + ".",
                {"before mixing": softmax, "after": own},
            )
        )
    if patches is not None and last is not None and "patches_alike" not in kinds and patches >= PATCHES_HIGH:
        level = "nearly all alike" if patches >= PATCHES_ALIKE else "high"
        words = f"Patch similarity after block {blocks[last].index} is {_n(patches)}, {level}"
        if similarity is not None and similarity < _DIFFERENT:
            words += f", although neighbouring maps differ (similarity {_n(similarity)} in the deeper half): "
            words += "different maps do not keep the patches apart here"
        found.append(Finding("notice", [blocks[last].index], words + ".", {"patch similarity": patches}))
    return found


def whole_text(
    kind: str,
    headline: str,
    main: Sequence[Finding],
    notices: Sequence[Finding],
    cures: Sequence[Cure],
    sureness: str,
    why: str,
    blocks: Sequence[BlockFacts],
    series: Numbers,
) -> str:
    """The whole verdict: findings, counts, remarks, cures, and how sure."""
    parts = [headline + "."]
    parts += [finding.sentence for finding in main]
    parts.append(_counts(blocks, series, kind))
    parts += [finding.sentence for finding in notices]
    if kind == "untrained_or_uniform":
        parts.append(
            "A freshly initialised network looks like this, so it is not called collapse: train it first."
        )
    if cures:
        names = [f"{cure.name} ({'all' if cure.blocks == 'all' else cure.blocks})" for cure in cures[:3]]
        parts.append(f"What answers it, with the blocks: {', '.join(names)}.")
    words = {"sure": "This is sure", "likely": "This is likely", "unsure": "This is not sure"}[sureness]
    parts.append(f"{words}: {why}.")
    return " ".join(part for part in parts if part)


def _counts(blocks: Sequence[BlockFacts], series: Numbers, kind: str) -> str:
    """How many blocks count as similar, and the deepest patch similarity: said in every verdict."""
    parts = []
    if "attention_similarity" in series:
        values = series["attention_similarity"].values
        count, known = len(similar_blocks(values)), [value for value in values if value is not None]
        low, high = min(known), max(known)
        parts.append(
            f"{count} of {len(known)} blocks are similar to the previous one (at least {SIMILAR_THRESHOLD}); "
            f"similarities lie between {_n(low)} and {_n(high)}."
        )
    if "patch_similarity" in series:
        found = [
            (block.index, v)
            for block, v in zip(blocks, series["patch_similarity"].values, strict=True)
            if v is not None
        ]
        index, value = found[-1]
        parts.append(
            f"Patch similarity: {_n(found[0][1])} after block {found[0][0]}, {_n(value)} after block {index}."
        )
    return " ".join(parts)


def _evidence(series: Numbers, keys: Sequence[str], positions: Sequence[int]) -> dict[str, float]:
    found = {key: mean_at(series, key, positions) for key in keys}
    return {f"{key}, mean of these blocks": value for key, value in found.items() if value is not None}


def _before(series: Numbers, key: str, positions: Sequence[int], digits: int = 2) -> str:
    value = mean_at(series, key, positions)
    return "" if value is None else f"; {_n(value, digits)} on the average before them"


def _span(positions: Sequence[int], blocks: Sequence[BlockFacts]) -> str:
    indices = [blocks[position].index for position in positions]
    if len(indices) == 1:
        return f"block {indices[0]}"
    full = indices == list(range(indices[0], indices[-1] + 1))
    return f"blocks {indices[0]} to {indices[-1]}" + ("" if full else f" ({len(indices)} of them)")


def _n(value: float | None, digits: int = 2) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
