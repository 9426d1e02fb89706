"""The metrics by key: each is a record beside its function in ``metrics``, and a line here.

Reports, ``collapse.json``, its documentation and the tests read this table. Its order is the order in which a
report shows the metrics.
"""

from __future__ import annotations

from collections.abc import Collection

from deepvit.collapse.metrics import cross, maps, sinks, spectrum, tokens
from deepvit.collapse.metrics.metric import Metric

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        cross.SIMILARITY,
        cross.SIMILARITY_CENTRED,
        cross.SIMILARITY_BEFORE_MIXING,
        maps.HEADS,
        maps.ENTROPY,
        maps.CONTRAST,
        spectrum.MAP_RANK,
        maps.DISTANCE,
        sinks.SHARE,
        sinks.VALUE_NORM,
        tokens.PATCHES,
        tokens.PATCHES_SIGNED,
        tokens.FEATURES,
        spectrum.TOKEN_RANK,
        tokens.RANK_ONE,
        tokens.CHANGE,
        tokens.UPDATE,
        tokens.ATTENTION_BRANCH,
        tokens.MLP_BRANCH,
        tokens.IMAGES,
        tokens.HIGH_NORM,
    )
}


def register(metric: Metric) -> Metric:
    """Add a metric: from now on diagnoses measure it, and reports, files and comparisons show it.

    Raises ValueError when there is one of this name.
    """
    if METRICS.get(metric.key, metric) is not metric:
        raise ValueError(f"there is a metric {metric.key!r} already")
    METRICS[metric.key] = metric
    return metric


def of_stage(stage: str, only: Collection[str] | None = None) -> list[Metric]:
    """The metrics that are computed at this stage; ``only`` keeps those of some keys."""
    return [
        metric
        for metric in METRICS.values()
        if metric.stage == stage and (only is None or metric.key in only)
    ]


def table() -> list[str]:
    """Rows of a Markdown table: key, range, alarm, formula."""
    rows = []
    for metric in METRICS.values():
        ends = (
            "−∞" if metric.low is None else _end(metric.low),
            "∞" if metric.high is None else _end(metric.high),
        )
        formula = metric.formula.replace("|", "\\|")
        rows.append(f"| `{metric.key}` | {ends[0]} to {ends[1]} | {metric.alarm} | {formula} |")
    return rows


def _end(value: float) -> str:
    return f"{value:g}".replace("-", "−")


MATRICES: dict[str, str] = {
    "attention_similarity": "attention similarity of every pair of blocks whose maps have the same shape",
    "attention_similarity_centred": "the same on centred maps",
    "cka": "linear centred kernel alignment of the patch tokens of every pair of blocks",
}

KINDS: dict[str, str] = {
    "maps_alike": "all maps alike",
    "uniform_maps": "maps uniform",
    "sharp_maps": "maps too sharp",
    "patches_alike": "patches alike",
}
"""What each kind of collapse goes towards, in two or three words."""
