"""Where in depth a state holds: from per-block numbers to the stretch of blocks that a verdict names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from deepvit.collapse.results import BlockFacts, Series
from deepvit.collapse.states import (
    UNTRAINED_SHARE_OF_KEYS,
    BlockNumbers,
    has_patches_alike,
    is_alike,
    is_sharp,
    is_uniform,
)

# So many of the blocks from the first to the end must be in the state: an exception does not break a stretch.
_SHARE_OF_STRETCH = 0.75


@dataclass(frozen=True)
class Stretch:
    """Positions (in the list of blocks) in one state.

    ``first``: where it is first met; ``start``: where the collapse begins, which is one earlier when what
    is met is that a block repeats the one before. ``to_end``: it holds to the last block that can be in the
    state.
    """

    kind: str
    start: int
    first: int
    members: tuple[int, ...]
    to_end: bool


def block_states(blocks: Sequence[BlockFacts], series: Mapping[str, Series]) -> dict[str, list[bool | None]]:
    """For each kind of collapse, and "untrained", whether each block's means show it; ``None``: unknown."""
    states: dict[str, list[bool | None]] = {
        kind: [] for kind in ("maps_alike", "uniform_maps", "sharp_maps", "patches_alike", "untrained")
    }
    for position, block in enumerate(blocks):
        similarity = number_at(series, "attention_similarity", position)
        entropy = number_at(series, "entropy", position)
        patches = number_at(series, "patch_similarity", position)
        numbers = BlockNumbers(
            similarity=_tensor(similarity),
            centred=_tensor(number_at(series, "attention_similarity_centred", position)),
            entropy=_tensor(entropy),
            contrast=_tensor(number_at(series, "map_contrast", position)),
            keys=block.keys or 0,
            mixed=block.mixed,
        )
        has_maps = entropy is not None and block.kind != "class"
        states["maps_alike"].append(None if similarity is None else bool(is_alike(numbers)))
        states["uniform_maps"].append(bool(is_uniform(numbers)) if has_maps else None)
        untrained = bool(is_uniform(numbers, UNTRAINED_SHARE_OF_KEYS))
        states["untrained"].append(untrained if has_maps else None)
        states["sharp_maps"].append(bool(is_sharp(numbers)) if has_maps else None)
        states["patches_alike"].append(None if patches is None else bool(has_patches_alike(_tensor(patches))))
    return states


def find_stretch(kind: str, flags: Sequence[bool | None], least: int = 2) -> Stretch | None:
    """The stretch of blocks in a state: one that lasts to the end of the network, else the longest.

    To the end: the earliest block from which on at least three quarters of the blocks are in the state, it
    and the next one among them, and ``least`` in all. Else: a run of at least ``least`` blocks and a sixth
    of the depth.
    """
    known = [position for position, flag in enumerate(flags) if flag is not None]
    if not known:
        return None
    for place, position in enumerate(known):
        rest = known[place:]
        members = [p for p in rest if flags[p]]
        begins = all(flags[p] for p in rest[:2])
        if (
            begins
            and len(members) >= min(least, len(known))
            and len(members) >= _SHARE_OF_STRETCH * len(rest)
        ):
            return _stretch(kind, position, members, True)
    runs: list[list[int]] = []
    previous_flag = False
    for position in known:
        if flags[position] and previous_flag:
            runs[-1].append(position)
        elif flags[position]:
            runs.append([position])
        previous_flag = bool(flags[position])
    longest = max(runs, key=len, default=[])
    if len(longest) >= max(least, math.ceil(len(known) / 6)):
        return _stretch(kind, longest[0], longest, False)
    return None


def _stretch(kind: str, first: int, members: Sequence[int], to_end: bool) -> Stretch:
    # A block that repeats its predecessor: the map that is repeated belongs to the stretch.
    start = max(0, first - 1) if kind == "maps_alike" else first
    return Stretch(kind, start, first, tuple(members), to_end)


def number_at(series: Mapping[str, Series], key: str, position: int) -> float | None:
    """A metric's mean in one block; ``None`` where it was not measured."""
    return series[key].values[position] if key in series else None


def mean_at(series: Mapping[str, Series], key: str, positions: Sequence[int]) -> float | None:
    """Mean of a metric over blocks that have it."""
    values = [value for p in positions if (value := number_at(series, key, p)) is not None]
    return sum(values) / len(values) if values else None


def _tensor(value: float | None) -> torch.Tensor:
    return torch.tensor(math.nan if value is None else value, dtype=torch.float64)
