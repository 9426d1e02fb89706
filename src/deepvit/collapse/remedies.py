"""Which cures answer which kind of collapse, and in which blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from deepvit.collapse.results import Cure


class Answer(NamedTuple):
    """A name as in ``deepvit list cures``, or of a loss (which takes no blocks), and what it does."""

    name: str
    why: str
    loss: bool = False


# Kind of finding → what answers it, in the order to try.
ANSWERS: dict[str, tuple[Answer, ...]] = {
    "maps_alike": (
        Answer("reattention", "mixes the heads, which still differ, into maps of their own in each block"),
        Answer(
            "talking_heads", "mixes heads before and after the softmax, for the same reason at less change"
        ),
        Answer(
            "value_residual",
            "gives deep blocks the first block's values to work on, so equal maps lose less",
        ),
    ),
    "uniform_maps": (
        Answer("attnscale", "amplifies the part of each map that is not uniform"),
        Answer("centred_attention", "takes the uniform part out of the attention output"),
        Answer("featscale", "reweights the mean of the tokens against what tells them apart"),
    ),
    "sharp_maps": (
        Answer("qk_norm", "normalises queries and keys, which bounds the scores"),
        Answer("sigma_reparam", "bounds the spectral norm of the weights, so that scores cannot run away"),
    ),
    "patches_alike": (
        Answer(
            "patch_cosine",
            "a loss on the last block's patches that keeps them apart; no change to the network",
            loss=True,
        ),
        Answer(
            "patch_contrastive",
            "a loss that ties each patch of the last block to its own input, not to the others",
            loss=True,
        ),
        Answer("contranorm", "pushes tokens apart after attention"),
        Answer("neutreno", "feeds back what smoothing took from the values"),
        Answer("featscale", "raises what tells tokens apart against their mean"),
        Answer("layerscale", "lets each branch start small, so that deep blocks smooth less"),
    ),
}


def answering(kind: str) -> tuple[Answer, ...]:
    """What answers a finding of this kind, in the order to try."""
    return ANSWERS.get(kind, ())


def cures_for(kind: str, blocks: Sequence[int], indices: Sequence[int]) -> list[Cure]:
    """Cures that answer a finding of this kind in these blocks; ``indices`` are all blocks of the network."""
    where = block_range(blocks, indices)
    return [Cure(name, "all" if loss else where, why, loss) for name, why, loss in answering(kind)]


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
