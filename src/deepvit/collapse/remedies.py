"""Which cures answer which kind of collapse, and in which blocks."""

from __future__ import annotations

from collections.abc import Sequence

from deepvit import cures, losses
from deepvit.collapse.results import Cure


def cures_for(kind: str, blocks: Sequence[int], indices: Sequence[int]) -> list[Cure]:
    """Losses and cures that answer a finding of this kind in these blocks, as their registries say; ``indices`` are
    all blocks of the network."""
    own = [Cure(name, "all", why, loss=True) for name, why in losses.answering(kind)]
    place = block_range(blocks, indices)
    return own + [Cure(name, place, why) for name, why in cures.answering(kind)]


def block_range(blocks: Sequence[int], indices: Sequence[int]) -> str:
    """Blocks in the ``--blocks`` syntax: ``all``, ``last:5``, ``5-11`` or ``3,8-11``."""
    chosen = sorted(set(blocks))
    every = sorted(set(indices))
    if chosen == every and every == list(range(len(every))):
        return "all"
    runs: list[list[int]] = []
    for number in chosen:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
