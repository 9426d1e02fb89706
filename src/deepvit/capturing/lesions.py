"""What can be done to a network while it runs, to find out what a part of it is worth.

Each of these is given to :func:`deepvit.capturing.intervene`. Blocks and keys are the names that ``capture``
gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

MapFunction = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class SkipBlock:
    """The block passes its input on. Saves its computation where the block is a module that returns a tensor.

    Refused for a block whose output has another shape than its input, and for a branch that is added to the
    stream by what is around it (parallel blocks).
    """

    block: str


@dataclass(frozen=True)
class DropAttention:
    """The block's attention branch adds nothing to the stream; everything else (the MLP) runs.

    What is left out is all that was made of the attention's output until it is added: projection, layer
    scale, drop path, a norm of the branch (Swin v2). A norm after the sum (post-norm) stays. ``block`` may
    be the key of one of several attentions (``stages.0.blocks.0.attn_grid``). Refused where the output is
    joined with something else before it is added.
    """

    block: str


@dataclass(frozen=True)
class ReplaceMap:
    """What multiplies V is another map: ``map' · V`` stands where the network has ``map · V``.

    ``by`` is a map [B * W, H, N, M] (or one that broadcasts to it), or a function ``by(map, earlier)`` that
    gives one; ``map`` is the one that the network has (after mixing, in Re-attention), in float32, prefix
    tokens included; ``earlier`` holds the maps of the keys in ``reads``, as far as they came before in this
    pass, as the network used them (replaced ones as replaced).
    """

    key: str
    by: Tensor | MapFunction
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReplacePatches:
    """The patch tokens that leave the block are others; prefix tokens, and those behind, stay.

    ``by`` gets the patches [B, P, C] and returns as many.
    """

    block: str
    by: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EndAfter:
    """The network ends after the block: all later blocks pass their input on, final norm and head run.

    Class attention behind the patch blocks (CaiT) belongs to the head, and stays. Refused where a later
    block changes the shape.
    """

    block: str


Lesion = SkipBlock | DropAttention | ReplaceMap | ReplacePatches | EndAfter
