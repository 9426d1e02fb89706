"""What a metric is: its name, range, formula and source, what it needs, and the function that computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Legend: B images, W windows an image, H heads, Q queries, K keys, N patches, C channels.
NEEDS: dict[str, dict[str, str]] = {
    "maps": {
        "maps": "the map that multiplies V, [B*W,H,Q,K]",
        "softmax": "the softmax map, before heads are mixed, [B*W,H,Q,K]",
        "few_rows": "evenly spaced rows of the map that multiplies V, of few images, for what costs most",
        "columns": "the compared columns of the map that multiplies V: (units, present, weight)",
        "values": "the values that the map multiplies, [B*W,H,K,D]",
        "map_layout": "the MapLayout of these maps: windows, prefix tokens, grids",
    },
    "tokens": {
        "patches": "the patch tokens that leave the block, [B,N,C]",
        "some_patches": "at most 256 of them an image, evenly spaced, for what compares all pairs",
        "few_patches": "the same of few images, for what costs most",
        "patches_before": "the patch tokens that enter the block, [B,N,C]",
        "patches_between": "the patch tokens between the attention and the MLP branch of the block, [B,N,C]",
        "token_layout": "the TokenLayout of these tokens: prefix tokens, grid",
    },
    "end": {
        "some_patches": "as above",
        "last_patches": "the same of the last block",
    },
}
"""Stage of a forward pass → what a metric can ask for there → what that is. A metric asks in one stage."""


@dataclass(frozen=True)
class Metric:
    """One quantity measured for every block.

    Attributes:
        key: its name in files.
        title: its name on a page.
        unit: what it is counted in.
        low: least value, ``None`` where there is none.
        high: largest value, ``None`` where there is none.
        alarm: which end of the range speaks of collapse: "high", "low", "both" or "none".
        formula: as one line.
        meaning: how to read it.
        source: paper, or "ours".
        needs: what ``compute`` takes, in order: names of one stage of ``NEEDS``.
        compute: gives one number an image ([B], or [B*W] for maps), or one a head ([B*W,H]), NaN where there
            is none; ``None`` for a block of which it cannot be taken. A metric without the function is one
            that needs several blocks at once: the sums take it themselves.
    """

    key: str
    title: str
    unit: str
    low: float | None
    high: float | None
    alarm: str
    formula: str
    meaning: str
    source: str
    needs: tuple[str, ...] = ()
    compute: Callable[..., Tensor | None] | None = None

    def __post_init__(self) -> None:
        if self.alarm not in ("high", "low", "both", "none"):
            raise ValueError(f"{self.key}: alarm={self.alarm!r} must be high, low, both or none")
        if self.compute is not None and self.stage is None:
            raise ValueError(
                f"{self.key}: needs={self.needs} are not of one stage: " + "; ".join(map(_said, NEEDS))
            )

    @property
    def stage(self) -> str | None:
        """The stage at which it is computed; ``None`` for one that the sums take themselves."""
        if self.compute is None or not self.needs:
            return None
        return next((stage for stage, names in NEEDS.items() if names.keys() >= set(self.needs)), None)


def computed(
    metrics: Sequence[Metric], supply: Mapping[str, Callable[[], Any]]
) -> Iterator[tuple[Metric, Tensor]]:
    """Each metric with its values, of those whose needs are met; a need is made once, when first asked for."""
    made: dict[str, Any] = {}
    for metric in metrics:
        assert metric.compute is not None
        for name in metric.needs:
            if name not in made:
                made[name] = supply[name]()
        given = [made[name] for name in metric.needs]
        values = None if any(value is None for value in given) else metric.compute(*given)
        if values is not None:
            yield metric, values


def _said(stage: str) -> str:
    return ", ".join(NEEDS[stage])
