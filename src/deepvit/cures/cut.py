"""Cut: leave blocks out for good.

Mechanism: a residual block whose removal does not change the answer costs time and parameters for nothing; the
blocks after it read the stream as they would have.

Formula: the network without the given blocks; a block is ``x + branches(x)``, so its input takes the place of its
output.
Source: after the lesions of ``deepvit diagnose``; removing residual blocks at test time is Veit et al. 2016,
"Residual Networks Behave Like Ensembles of Relatively Shallow Networks" (arXiv 1605.06431), whole blocks of Vision
Transformers for instance Men et al. 2024, "ShortGPT" (arXiv 2403.03853), for language.
Cost: less than none: time and parameters fall by the share of the blocks.
Start: not the identity: what the blocks did is gone. Fine-tuning afterwards brings some of it back.
Helps: idle depth.

Numbers: those of the uncut network. With other cures in one ``apply`` cut comes last, so that their numbers are those
of the uncut network too. Afterwards the blocks count anew from 0, and a later ``apply`` (fine-tuning a cut run) takes
the new numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from deepvit.cures.cure import Cure
from deepvit.cures.memory import keep_values
from deepvit.cures.target import blocks_of
from deepvit.errors import UserError


@dataclass(frozen=True)
class Options:
    """Cut has no options."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Remove these blocks, and set right what counts blocks; raises UserError where something hangs on them."""
    found = blocks_of(model, "cut")
    _check(model, found, set(blocks))
    container: Any = model.blocks
    for number in sorted(blocks, reverse=True):
        del container[number]
    kept = [number for number in range(len(found)) if number not in set(blocks)]
    _renumber(model, kept)


def _check(model: nn.Module, found: list[Any], gone: set[int]) -> None:
    """Refuse what would leave no network, or another one than was measured."""
    if len(gone) >= len(found):
        raise UserError(f"cut: all {len(found)} blocks are named; one has to stay")
    widths = {int(norm.weight.numel()) for block in found if (norm := _first_norm(block)) is not None}
    if len(widths) > 1 or hasattr(model, "stage_ends"):
        raise UserError(
            f"{type(model).__name__} cannot be cut: its blocks change the width or number of tokens"
        )
    if getattr(model, "rope_mixed", False):
        raise UserError(
            f"{type(model).__name__} cannot be cut: its rotary embedding counts the blocks (rope_mixed)"
        )
    if 0 in gone and any(
        hook is keep_values for part in found[0].modules() for hook in part._forward_hooks.values()
    ):
        raise UserError(
            "cut: block 0 hands its values on to later blocks (a cure needs them), so it has to stay"
        )


def _first_norm(block: nn.Module) -> Any:
    """A block's own width is that of its first norm with a weight."""
    return next(
        (
            m
            for m in block.modules()
            if isinstance(getattr(m, "weight", None), nn.Parameter) and m.weight.ndim == 1
        ),
        None,
    )


def _renumber(model: Any, kept: list[int]) -> None:
    """What timm and our own networks keep of the number of blocks."""
    info = getattr(model, "feature_info", None)
    if isinstance(info, list) and len(info) > max(kept):
        model.feature_info = [
            {**info[old], "module": f"blocks.{new}"} if "module" in info[old] else info[old]
            for new, old in enumerate(kept)
        ]
    mixed = getattr(model, "reattention_blocks", None)
    if isinstance(mixed, tuple):
        model.reattention_blocks = tuple(new for new, old in enumerate(kept) if old in mixed)
    if isinstance(getattr(model, "depth", None), int):
        model.depth = len(kept)


CURE = Cure(
    name="cut",
    mechanism="leave these blocks out: their input takes the place of their output",
    source="Veit et al. 2016, arXiv 1605.06431; which blocks: lesions of deepvit diagnose",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=False,
    slots=frozenset({"the block itself"}),
    helps="blocks that do nothing",
    answers={
        "idle": "the answers are kept without these blocks: less time and fewer parameters for the same network",
        "harm": "the network answers better without these blocks",
    },
    removes=True,
)
