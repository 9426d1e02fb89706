"""Which profiles a report draws, in which order, and the one line that says how to read each.

Words for single metrics come from the catalogue; only what several lines say together is written here. A
metric that the catalogue gains is drawn too, without a change here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepvit.collapse.catalogue import MATRICES, METRICS
from deepvit.collapse.results import Measurements

STRIP_ROWS = {
    "attention_similarity": "attention alike",
    "attention_similarity_centred": "the same, centred",
    "patch_similarity": "patches alike",
}
"""The rows of the depth strip: metric → its short name. All are cosines, so they share the ramp."""


@dataclass(frozen=True)
class Profile:
    """One chart over the blocks: the metrics it draws (main one first), their names, a reading line."""

    keys: tuple[str, ...]
    names: tuple[str, ...]
    title: str
    read: str


_TOGETHER = [
    Profile(
        ("attention_similarity", "attention_similarity_centred", "softmax_similarity"),
        ("as DeepViT measures it", "centred", "before heads are mixed"),
        "Attention like the block before",
        "High in both lines: these blocks share one learned map. High only as DeepViT (Zhou et al. 2021) measures "
        "it: the maps are near uniform, which also looks alike.",
    ),
    Profile(
        ("patch_similarity", "patch_similarity_signed"),
        ("absolute, P(h)", "signed"),
        "Patches alike",
        "Near 1: all patch tokens point the same way, and the block's output no longer says what is where.",
    ),
]


_ALONE = {
    "attention_similarity": "Attention like the block before",
    "attention_similarity_centred": "Attention alike, centred maps",
    "softmax_similarity": "Attention alike before heads are mixed",
    "rank_one_distance": "Patch tokens' distance from rank one",
}


def _profiles_of_one() -> list[Profile]:
    """The charts of a single model: what belongs together in one chart, then every other metric by itself."""
    placed = {key for profile in _TOGETHER for key in profile.keys}
    rest = [_alone(key) for key in METRICS if key not in placed]
    return [*_TOGETHER, *rest]


def _alone(key: str) -> Profile:
    return Profile((key,), (metric_title(key),), metric_title(key), METRICS[key].meaning)


def metric_title(key: str) -> str:
    """A metric's title where it stands alone; the catalogue's may lean on the entry above it."""
    return _ALONE.get(key, METRICS[key].title)


def shown_metrics(results: Sequence[Measurements]) -> list[str]:
    """The metrics that some of these models have, in the catalogue's order.

    The similarity before the heads are mixed is shown only where some block mixes them: elsewhere it repeats
    the attention similarity.
    """
    mixed = any(block.mixed for result in results for block in result.blocks)
    return [
        key
        for key in METRICS
        if any(_known(result, key) for result in results) and (mixed or key != "softmax_similarity")
    ]


def profiles(results: Sequence[Measurements], together: bool) -> list[Profile]:
    """The charts for these models; ``together`` draws metrics that explain each other into one chart.

    That is for a single model: two metrics of three models in one chart would be six lines.
    """
    shown = set(shown_metrics(results))
    found = []
    for profile in _profiles_of_one() if together else [_alone(key) for key in METRICS]:
        kept = [(key, name) for key, name in zip(profile.keys, profile.names, strict=True) if key in shown]
        if kept:
            keys, names = zip(*kept, strict=True)
            found.append(Profile(keys, names, profile.title, profile.read))
    return found


def _known(result: Measurements, key: str) -> bool:
    return key in result.series and any(value is not None for value in result.series[key].values)


def chart_payload(profile: Profile, results: Sequence[Measurements]) -> dict[str, Any]:
    """What the script needs to draw one profile: axis range and thresholds beside the words."""
    infos = [METRICS[key] for key in profile.keys]
    # Shares and cosines keep one scale in all reports; a negative value widens it where it occurs.
    fixed = infos[0].high == 1.0 and infos[0].alarm != "none"
    return {
        "title": profile.title,
        "keys": list(profile.keys),
        "names": list(profile.names),
        "unit": infos[0].unit,
        "range": [0.0, 1.0] if fixed else None,
        "floor": infos[0].low is not None and infos[0].low >= 0,
        "thresholds": thresholds(profile.keys, results),
    }


def thresholds(keys: Sequence[str], results: Sequence[Measurements]) -> list[dict[str, Any]]:
    """The lines that the verdict draws through these metrics, as the measurements state them."""
    found: dict[str, float] = {}
    for result in results:
        stated = result.provenance.get("thresholds", {})
        for key in keys:
            found |= {label: value for label, value in _lines(key, result, stated).items() if 0 < value <= 1}
    return [
        {"value": value, "label": label} for label, value in sorted(found.items(), key=lambda item: item[1])
    ]


def _lines(key: str, result: Measurements, stated: Mapping[str, Any]) -> dict[str, float]:
    if key == "attention_similarity":
        return {f"similar from {result.similar.threshold:g}": result.similar.threshold}
    if key == "attention_similarity_centred" and "alike_centred" in stated:
        return {f"one learned map from {stated['alike_centred']:g}": stated["alike_centred"]}
    if key == "patch_similarity" and "patches_alike" in stated:
        return {f"alike from {stated['patches_alike']:g}": stated["patches_alike"]}
    if key == "entropy":
        names = {"uniform_maps": "near uniform above", "sharp_maps": "too sharp below"}
        lines = kind_lines(result)
        return {name: lines[kind] for kind, name in names.items() if kind in lines}
    return {}


def kind_lines(result: Measurements) -> dict[str, float]:
    """Kind of collapse → the value of its main metric from (or below) which a block counts as collapsed.

    "maps_alike" is of centred maps (the plain similarity must be 0.9 besides); the others are of entropy and patch
    similarity. Thresholds of entropy are stated in tokens; in shares of log N they depend on N, so they are those
    of the usual N of the network.
    """
    stated = result.provenance.get("thresholds", {})
    lines = {}
    if "alike_centred" in stated:
        lines["maps_alike"] = stated["alike_centred"]
    if "patches_alike" in stated:
        lines["patches_alike"] = stated["patches_alike"]
    keys = [block.keys for block in result.blocks if block.keys and block.keys > 2 and block.kind != "class"]
    if keys and {"uniform_share_of_keys", "sharp_keys"} <= set(stated):
        usual = max(set(keys), key=keys.count)
        lines["uniform_contrast"] = math.sqrt(-2 * math.log(stated["uniform_share_of_keys"]))
        lines["uniform_maps"] = math.log(stated["uniform_share_of_keys"] * usual) / math.log(usual)
        lines["sharp_maps"] = math.log(stated["sharp_keys"]) / math.log(usual)
    return lines


def scale_start(results: Sequence[Measurements], key: str) -> float:
    """Where the colours of a matrix start: 0, or its least value where all are high and would be one colour.

    CKA of neighbouring blocks is often above 0.9 everywhere. All models of a page share the start, and the
    scale beside the matrix names it. Attention similarity keeps 0: there, one colour *is* the finding.
    """
    values = [
        value
        for result in results
        for row in result.matrices.get(key, ())
        for value in row
        if value is not None
    ]
    least = min(values, default=0.0)
    return min(0.95, math.floor(20 * least) / 20) if least >= 0.5 else 0.0


_MATRIX_WORDS = {
    "attention_similarity": (
        "Attention maps, as DeepViT measures it",
        "Strong off the diagonal: two blocks whose maps are alike, or merely both near uniform.",
    ),
    "attention_similarity_centred": (
        "Attention maps, centred",
        "Without the part that every softmax map shares. Still strong: one learned map, used over and over.",
    ),
    "cka": (
        "Patch tokens (CKA)",
        "Strong: the two blocks describe the patches in the same way, up to a rotation.",
    ),
}


def matrix_words(key: str) -> dict[str, str]:
    """Heading and reading line of a matrix."""
    described = MATRICES[key][0].upper() + MATRICES[key][1:]
    title, read = _MATRIX_WORDS.get(key, (described, "Strong: the two blocks are alike."))
    return {"title": title, "read": read, "definition": described}
