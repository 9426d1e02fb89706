"""How many images and which lesions fit into a time, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deepvit.collapse.lesions.catalogue import FEWEST
from deepvit.collapse.rows import Row

# Bytes of kept block outputs, or of one block's maps with what is computed of them, at a time.
_MEMORY = 256 * 2**20
_MOST = 512
# Fewer images than this say little: rather leave out a kind of lesion.
FEWEST_IMAGES = 16
# Sets of blocks are tried after the single ones, with what is left.
_SINGLES = 0.85


@dataclass(frozen=True)
class Pace:
    """Seconds of an intact pass: ``start`` of any, and ``each`` of an image."""

    start: float
    each: float

    def seconds(self, passes: Sequence[float], images: int, chunk: int) -> float:
        """Of these passes (in intact ones) over so many images, so many at a time."""
        # To watch a network costs as much again as to start it.
        rounds = -(-images // max(1, chunk))
        return rounds * 2 * self.start * len(passes) + images * self.each * sum(passes)


class Budget:
    """The time for all lesions of one network; ``None`` is no limit."""

    def __init__(self, seconds: float | None, started: float) -> None:
        self.seconds, self.started = seconds, started

    def spent(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started

    def share(self) -> float:
        """Share of the time for single lesions that is spent; 0 without a limit."""
        return 0.0 if self.seconds is None else min(1.0, self.spent() / (_SINGLES * self.seconds))

    def is_over(self, kind: str) -> bool:
        """Whether the time for single lesions is spent; the kinds that a verdict rests on are done all the same."""
        return self.seconds is not None and kind not in FEWEST and self.spent() > _SINGLES * self.seconds

    def pace(self, forward: Callable[[int], object], images: int) -> Pace:
        """How long an intact pass takes, from one of a quarter of so many images and one of all."""
        if self.seconds is None:
            return Pace(0.0, 0.0)
        few, many = max(1, images // 4), images
        times = []
        for count in (few, many):
            started = time.perf_counter()
            forward(count)
            times.append(time.perf_counter() - started)
        each = (
            max(times[1] - times[0], 0.1 * times[1]) / max(1, many - few) if many > few else times[1] / many
        )
        return Pace(max(0.0, times[1] - each * many), each)

    def choose(
        self, costs: Mapping[str, Sequence[float]], images: int, pace: Pace, chunk: int
    ) -> tuple[list[str], int]:
        """Kinds of lesions, and on how many images.

        ``costs``: of each kind, in the order of what they are worth to the verdict, the passes in intact ones.
        Kinds are left out from the end while fewer than ``FEWEST_IMAGES`` images would fit.
        """
        kinds = list(costs)
        if self.seconds is None:
            return kinds, images
        left = _SINGLES * self.seconds - self.spent()
        while True:
            passes = [1.0, *(cost for kind in kinds for cost in costs[kind])]
            fit = images
            while fit > 1 and pace.seconds(passes, fit, chunk) > left:
                fit = int(fit * 0.9)
            if fit >= min(images, FEWEST_IMAGES) or set(kinds) <= set(FEWEST):
                return kinds, max(min(images, 8), fit)
            kinds.pop()

    def fitting(self, costs: Sequence[float], per_cost: float) -> int:
        """How many of these passes, in order, fit into what is left, at ``per_cost`` seconds an intact one; at least 1."""
        if self.seconds is None:
            return len(costs)
        left, count = self.seconds - self.spent(), 0
        for cost in costs:
            left -= cost * per_cost
            if left < 0:
                break
            count += 1
        return max(1, count)

    def chunk(self, images: int, pace: Pace) -> int:
        """Images of one round: small enough that what the first one takes tells whether another fits."""
        # Where a pass costs as much for one image as for all, rounds would cost as much as they are many.
        if self.seconds is None or pace.start > pace.each * images:
            return images
        return max(8, -(-images // 3))

    def allows(self, seconds: float) -> bool:
        """Whether another round of so many seconds fits."""
        return self.seconds is None or self.spent() + seconds <= _SINGLES * self.seconds


def memory_chunk(kept: int, rows: Sequence[Row]) -> int:
    """How many images at a time: ``kept`` bytes of block outputs an image, and the largest map."""
    largest = max((r.layout.windows * r.layout.heads * r.layout.queries * r.keys for r in rows), default=1)
    return max(1, min(_MOST, _MEMORY // max(1, kept, 6 * 4 * largest)))
