"""Which blocks are taken away together, chosen from what each does by itself."""

from __future__ import annotations

from collections.abc import Sequence

from deepvit.collapse.lesions.effects import Effect, Lesions
from deepvit.collapse.lesions.lines import is_idle, keeps_answer

MOST = 8
"""At most so many sets of blocks are tried."""


def earliest_exit(found: Lesions) -> Effect | None:
    """The earliest end of the network that keeps the answer, and after which every later end keeps it too."""
    exits = sorted(found.single("exit").values(), key=lambda e: e.blocks[0])
    best = None
    for effect in reversed(exits):
        if not keeps_answer(found, effect):
            break
        best = effect
    return best


def idle_by_itself(found: Lesions) -> list[int]:
    """Blocks that change nothing when they alone are taken away, the idlest first."""
    singles = found.single("block")
    return sorted((b for b, e in singles.items() if is_idle(found, e)), key=lambda b: singles[b].value)


def sets_to_try(found: Lesions, order: Sequence[int]) -> list[list[int]]:
    """Sets of two or more blocks; ``order``: the blocks that can be removed, in order of execution.

    All that are idle by themselves; with the tail that an early exit leaves out; stretches of idle neighbours; and
    the idlest three quarters, half and quarter of them: the largest of these that keeps the answer is what can go.
    """
    idle = idle_by_itself(found)
    end = earliest_exit(found)
    tail = [b for b in order if end is not None and b > end.blocks[0]]
    wanted = [sorted({*idle, *tail}), sorted(idle), tail]
    place = {block: number for number, block in enumerate(order)}
    run: list[int] = []
    runs: list[list[int]] = []
    for block in sorted(idle):
        if run and place.get(block) == place.get(run[-1], -2) + 1:
            run.append(block)
        else:
            run = [block]
            runs.append(run)
    wanted += sorted(runs, key=len, reverse=True)
    wanted += [sorted(idle[: round(len(idle) * share)]) for share in (0.75, 0.5, 0.25)]
    chosen: list[list[int]] = []
    for blocks in wanted:
        if 2 <= len(blocks) < len(order) and blocks not in chosen:
            chosen.append(blocks)
    return chosen[:MOST]


def removable(found: Lesions, order: Sequence[int]) -> Effect | None:
    """The blocks that can go: a set that was tried and keeps the answer, or the one block that is idle.

    The end of the network if that is at least half of the largest set: a shorter network is what it says to be, and
    the answer is kept after each of these blocks (an early end that happens to do well is none). Else the largest set.
    """
    tried = [e for e in found.effects if e.lesion == "blocks" and keeps_answer(found, e)]
    tried += [e for e in found.single("block").values() if is_idle(found, e)]
    largest = max(tried, key=lambda e: (len(e.blocks), -e.value), default=None)
    end = earliest_exit(found)
    tail = [block for block in order if end is not None and block > end.blocks[0]]
    shorter = next((effect for effect in tried if effect.blocks == tail), None)
    enough = largest is not None and shorter is not None and 2 * len(tail) >= len(largest.blocks)
    return shorter if enough else largest


def largest(found: Lesions) -> Effect | None:
    """The largest set that was tried and keeps the answer."""
    tried = [e for e in found.effects if e.lesion == "blocks" and keeps_answer(found, e)]
    return max(tried, key=lambda e: (len(e.blocks), -e.value), default=None)
