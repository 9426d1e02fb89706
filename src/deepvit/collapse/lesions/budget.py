"""How many images and which lesions fit into a time, and when to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from deepvit.collapse.lesions.catalogue import FEWEST
from deepvit.collapse.rows import Row

# Bytes of kept block outputs, or of one block's maps with what is computed of them, at a time.
_MEMORY = 256 * 2**20
_MOST = 64
# Fewer images than this say little: rather leave out a kind of lesion.
FEWEST_IMAGES = 24
# Sets of blocks are tried after the single ones, with what is left.
_SINGLES = 0.75


class Budget:
    """The time for all lesions of one network; ``None`` is no limit."""

    def __init__(self, seconds: float | None, started: float) -> None:
        self.seconds, self.started = seconds, started

    def spent(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started

    def pace(self, forward: Callable[[], object], images: int) -> float:
        """Seconds of an intact pass, an image."""
        if self.seconds is None:
            return 0.0
        started = time.perf_counter()
        forward()
        return (time.perf_counter() - started) / max(1, images)

    def choose(self, costs: Mapping[str, float], images: int, pace: float) -> tuple[list[str], int]:
        """Kinds of lesions, and on how many images; ``costs`` of each kind in intact passes, the first first.

        Kinds are left out from the end while fewer than ``FEWEST_IMAGES`` images would fit.
        """
        kinds = list(costs)
        if self.seconds is None or pace <= 0:
            return kinds, images
        left = _SINGLES * self.seconds - self.spent()
        while True:
            fit = int(left / (pace * (1 + sum(costs[kind] for kind in kinds))))
            if fit >= min(images, FEWEST_IMAGES) or set(kinds) <= set(FEWEST):
                return kinds, max(min(images, 8), min(images, fit))
            kinds.pop()

    def chunk(self, images: int) -> int:
        """Images of one round: small enough that what the first one takes tells whether another fits."""
        return images if self.seconds is None else max(8, -(-images // 3))

    def allows(self, seconds: float) -> bool:
        """Whether another round of so many seconds fits."""
        return self.seconds is None or self.spent() + seconds <= _SINGLES * self.seconds


def memory_chunk(kept: int, rows: Sequence[Row]) -> int:
    """How many images at a time: ``kept`` bytes of block outputs an image, and the largest map."""
    largest = max((r.layout.windows * r.layout.heads * r.layout.queries * r.keys for r in rows), default=1)
    return max(1, min(_MOST, _MEMORY // max(1, kept, 6 * 4 * largest)))
