"""Running sums of all attention metrics, by their records: maps come in block by block and are gone after the batch.

Legend: B images, W windows per image, H heads, Q queries, K keys, S compared columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deepvit.capturing import MapLayout
from deepvit.collapse.catalogue import of_stage
from deepvit.collapse.metrics import is_distribution, weighted_columns
from deepvit.collapse.metrics.cross import SIMILAR_THRESHOLD, pairwise
from deepvit.collapse.metrics.metric import computed
from deepvit.collapse.moments import Moments
from deepvit.collapse.plan import Plan, spread_evenly
from deepvit.collapse.rows import Row
from deepvit.collapse.states import UNTRAINED_SHARE_OF_KEYS, BlockNumbers, is_alike, is_sharp, is_uniform

RULES: dict[str, Callable[[BlockNumbers], Tensor]] = {
    "alike": is_alike,
    "uniform": is_uniform,
    "sharp": is_sharp,
    "untrained": partial(is_uniform, share=UNTRAINED_SHARE_OF_KEYS),
}


class _Columns:
    """Compared columns of all rows of a group, for one forward pass; memory is reused between passes."""

    def __init__(self, members: list[int]) -> None:
        self.slot = {row: slot for slot, row in enumerate(members)}
        self._units = torch.empty(0)
        self._present = torch.empty(0)
        self.maps = 0

    def put(self, row: int, units: Tensor, present: Tensor) -> None:
        """Store [B*W,H,S,Q] and [B*W,H,S] of one row."""
        self.maps, rows = units.shape[0], len(self.slot)
        if self._units.shape[:1] < (self.maps,) or self._units.device != units.device:
            self._units = units.new_empty((self.maps, rows, *units.shape[1:]))
            self._present = present.new_empty((self.maps, rows, *present.shape[1:]))
        self._units[: self.maps, self.slot[row]] = units
        self._present[: self.maps, self.slot[row]] = present

    def matrix(self, weight: Tensor) -> Tensor:
        """Similarity of every pair of rows, [B*W, L, L]."""
        return pairwise(self._units[: self.maps], self._present[: self.maps], weight)

    def pair(self, row: int, units: Tensor, present: Tensor, weight: Tensor) -> Tensor:
        """Similarity of a stored row with the given columns, [B*W]."""
        stored = self._units[: self.maps, self.slot[row]], self._present[: self.maps, self.slot[row]]
        both = torch.stack([stored[0], units], 1), torch.stack([stored[1], present], 1)
        return pairwise(*both, weight)[:, 0, 1]


class AttentionSums:
    """Takes the maps of one forward pass after another; holds each metric's mean and deviation over images.

    Call ``begin`` with the numbers of the images, then ``on_softmax`` (where the model changes the softmax
    map) and ``on_attention`` for each block in order, then ``end``. ``series[key][row]`` are then
    ``Moments`` of one number per image, ``per_head[key][row]`` of one per head, ``matrices[key]`` of [L, L]
    per group (rows in ``groups``), and ``states[state][row]`` of 0 or 1 per image.
    """

    def __init__(self, rows: Sequence[Row], plan: Plan) -> None:
        self.rows, self.plan = rows, plan
        self.position = {row.key: number for number, row in enumerate(rows)}
        self.series: dict[str, dict[int, Moments]] = defaultdict(lambda: defaultdict(Moments))
        self.per_head: dict[str, dict[int, Moments]] = defaultdict(lambda: defaultdict(Moments))
        self.states: dict[str, dict[int, Moments]] = defaultdict(lambda: defaultdict(Moments))
        self.matrices: dict[str, dict[int, Moments]] = defaultdict(lambda: defaultdict(Moments))
        self.groups: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            if row.facts.group is not None:
                self.groups[row.facts.group].append(number)
        self._columns = {group: _Columns(members) for group, members in self.groups.items()}
        self._centred = {group: _Columns(members) for group, members in self.groups.items()}
        self._samples = [plan.columns(row) for row in rows]
        self._softmax: dict[int, Tensor] = {}
        self._softmax_columns: dict[int, tuple[Tensor, Tensor]] = {}
        self._now: dict[tuple[str, int], Tensor] = {}
        self._whole: dict[int, Tensor] = {}
        self._images: list[int] = []
        self._few: list[int] = []
        self._metrics = of_stage("maps", plan.metrics)

    def begin(self, images: Sequence[int]) -> None:
        """Start a forward pass over the images with these numbers."""
        self._images = list(images)
        self._few = [place for place, image in enumerate(self._images) if self.plan.wants_rank(image)]
        self._now.clear()
        self._softmax.clear()
        self._whole.clear()
        self._softmax_columns.clear()

    def on_softmax(self, key: str, maps: Tensor, layout: MapLayout) -> None:
        """The softmax map [B*W,H,Q,K] of a block that changes it before it multiplies V."""
        if key in self.position:
            self._softmax[self.position[key]] = maps

    @property
    def wants_values(self) -> bool:
        """Whether any metric needs the values that maps multiply."""
        return any("values" in metric.needs for metric in self._metrics)

    def on_attention(self, key: str, maps: Tensor, layout: MapLayout, values: Tensor | None = None) -> None:
        """The map [B*W,H,Q,K] that multiplies V, and V [B*W,H,K,D] where it is known."""
        if key not in self.position:
            return
        number = self.position[key]
        row = self.rows[number]
        mixed_from = self._softmax.pop(number, None)
        row.facts.mixed = row.facts.mixed or mixed_from is not None
        softmax = maps if mixed_from is None else mixed_from
        if row.facts.kind == "windowed":
            self._whole[number] = _unmasked(softmax)
        columns = None if row.facts.group is None else self._compare(number, maps, mixed_from)
        supply: dict[str, Callable[[], Any]] = {
            "maps": lambda: maps,
            # Entropy and distance are not defined for anything but distributions.
            "softmax": lambda: softmax if is_distribution(softmax) else None,
            "few_rows": lambda: self._few_rows(row, maps),
            "columns": lambda: columns,
            "values": lambda: values,
            "map_layout": lambda: row.layout,
        }
        for metric, found in computed(self._metrics, supply):
            self._take(metric.key, number, found)

    def _few_rows(self, row: Row, maps: Tensor) -> Tensor | None:
        """Evenly spaced rows of the maps of few images, [b*W,H,q,K]; none where only the class token asks."""
        if not self._few or row.facts.kind == "class":
            return None
        picked: Tensor = maps.unflatten(0, (len(self._images), -1))[self._few].flatten(0, 1)
        return picked.index_select(-2, spread_evenly(maps.shape[-2], self.plan.rank_rows, maps.device))

    def _compare(self, number: int, maps: Tensor, mixed_from: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Keep the columns that ``end`` compares across blocks; these columns are returned, with weights."""
        group, sample = self.rows[number].facts.group, self._samples[number]
        assert group is not None
        units, present = weighted_columns(maps, sample)
        self._columns[group].put(number, units, present)
        self._centred[group].put(number, *weighted_columns(maps, sample, centred=True))
        self._softmax_similarity(number, mixed_from, (units, present))
        return units, present, sample.weight

    def end(self) -> None:
        """Finish the forward pass: similarities of all pairs, and the state of each block in each image."""
        for key, columns in (
            ("attention_similarity", self._columns),
            ("attention_similarity_centred", self._centred),
        ):
            for group, members in self.groups.items():
                weight = self._samples[members[0]].weight
                matrix = self._per_image(columns[group].matrix(weight), members[0])
                self.matrices[key][group].add(matrix)
                for slot, number in enumerate(members):
                    previous = self.rows[number].previous
                    if previous is not None:
                        self._now[key, number] = matrix[:, slot, members.index(previous)]
        for (key, number), values in self._now.items():
            self.series[key][number].add(values)
        for number, row in enumerate(self.rows):
            block = self._numbers(number, row)
            for state, rule in RULES.items():
                self.states[state][number].add(rule(block).to(torch.float64))
            similar = block.similarity >= SIMILAR_THRESHOLD
            self.states["similar"][number].add(
                torch.where(block.similarity.isnan(), torch.nan, similar.double())
            )
        self._now.clear()

    def _softmax_similarity(self, number: int, softmax: Tensor | None, own: tuple[Tensor, Tensor]) -> None:
        """Similarity with the previous block before heads are mixed, where either of the two mixes."""
        row, sample = self.rows[number], self._samples[number]
        columns = own if softmax is None else weighted_columns(softmax, sample)
        if softmax is not None:
            self._softmax_columns[number] = columns
        if row.previous is None or row.facts.group is None:
            return
        earlier = self._softmax_columns.pop(row.previous, None)
        if earlier is not None:
            both = torch.stack([earlier[0], columns[0]], 1), torch.stack([earlier[1], columns[1]], 1)
            self._take("softmax_similarity", number, pairwise(*both, sample.weight)[:, 0, 1])
        elif softmax is not None:
            pair = self._columns[row.facts.group].pair(row.previous, *columns, sample.weight)
            self._take("softmax_similarity", number, pair)

    def _numbers(self, number: int, row: Row) -> BlockNumbers:
        nothing = torch.full((len(self._images),), torch.nan, dtype=torch.float64)

        def now(key: str) -> Tensor:
            value = self._now.get((key, number))
            return nothing if value is None else value.to("cpu", torch.float64)

        return BlockNumbers(
            now("attention_similarity"),
            now("attention_similarity_centred"),
            now("entropy"),
            now("map_contrast"),
            row.keys,
            row.facts.mixed,
        )

    def _take(self, key: str, number: int, values: Tensor) -> None:
        """Keep one metric of one block, [B*W] or [B*W,H]: of all images of this pass, or of its few."""
        few = values.shape[0] // self.rows[number].layout.windows != len(self._images)
        values = self._per_image(values, number, self._few if few else None)
        if values.ndim > 1:
            self.per_head[key][number].add(values)
            values = values.nanmean(-1)
        if few:
            self.series[key][number].add(values)
        else:
            self._now[key, number] = values

    def _per_image(self, values: Tensor, number: int, places: list[int] | None = None) -> Tensor:
        """Mean over the windows of each image that are whole: [B*W, ...] -> [B, ...]."""
        count = len(self._images) if places is None else len(places)
        values = values.unflatten(0, (count, -1))
        whole = self._whole.get(number)
        if whole is not None:
            whole = whole.unflatten(0, (len(self._images), -1))
            whole = whole if places is None else whole[places]
            values = values.masked_fill(~whole.view(*whole.shape, *[1] * (values.ndim - 2)), torch.nan)
        mean: Tensor = values.nanmean(1)
        return mean


def _unmasked(maps: Tensor) -> Tensor:
    """Which windows [B*W] have no masked entry; all when every window has one.

    Shifted windows at the edge hold pieces of the image that must not see each other. Such a mask is a
    pattern that nobody learned: it lowers entropy and makes any two maps alike.
    """
    whole = maps.amin(dim=(1, 2, 3)) > 1e-30
    return whole if bool(whole.any()) else torch.ones_like(whole)
