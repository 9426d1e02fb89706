"""Puts the axes of any attention in order, [B * windows, heads, tokens, width]; knows maps over channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

_HEAD_NAMES = ("num_heads", "num_attention_heads", "heads", "n_heads", "nhead", "n_head")


class NotInOrder(Exception):  # noqa: N818 - a reason, caught and recorded
    """The leading axes of an attention cannot be told apart; the text says which and why."""


@dataclass(frozen=True)
class Order:
    """How to bring tensors with the leading axes ``lead`` into [B * windows, heads, ...]."""

    lead: tuple[int, ...]
    windows: int
    heads: int
    heads_axis: int | None  # in lead; None: heads are folded into the first axis, or there is one head

    def apply(self, t: Tensor) -> Tensor:
        """[*lead, rows, columns] -> [B * windows, heads, rows, columns]; missing lead axes are broadcast."""
        rows, columns = t.shape[-2:]
        t = t.expand(*self.lead, rows, columns)
        if self.heads_axis is None:
            return t.reshape(-1, self.heads, rows, columns)
        return t.movedim(self.heads_axis, -3).reshape(-1, self.heads, rows, columns)

    def undo(self, t: Tensor) -> Tensor:
        """[B * windows, heads, rows, columns] -> [*lead, rows, columns]: what ``apply`` was given."""
        rows, columns = t.shape[-2:]
        if self.heads_axis is None:
            return t.reshape(*self.lead, rows, columns)
        outer = [size for axis, size in enumerate(self.lead) if axis != self.heads_axis]
        return t.reshape(*outer, self.heads, rows, columns).movedim(len(outer), self.heads_axis)


def order_of(lead: tuple[int, ...], images: int | None, module: nn.Module) -> Order:
    """Read the leading axes of a map [*lead, N, M] made in ``module`` for ``images`` images.

    Four axes are [B * windows, heads, N, M] (or heads first, where the module's number of heads says so);
    three are [B * heads, N, M] or one head; five have heads where the module's number of heads is, the rest
    being images and windows. Raises ``NotInOrder`` where that cannot be told.
    """
    known = next((h for name in _HEAD_NAMES if isinstance(h := getattr(module, name, None), int)), None)
    if not lead or len(lead) > 3:
        raise NotInOrder(f"a map with the leading axes {lead} is neither [B, H, N, M] nor in windows")
    if len(lead) == 1:
        heads = known if known and images and lead[0] % (images * known) == 0 else 1
        axis, outer = None, lead[0] // heads
    elif len(lead) == 2:
        axis = 0 if known == lead[0] != lead[1] and lead[1] == images else 1
        heads, outer = lead[axis], lead[1 - axis]
    else:
        candidates = [i for i in (1, 2) if lead[i] == known]
        if known is None:
            candidates = [2]
        if len(candidates) != 1:
            raise NotInOrder(f"which of the leading axes {lead} is over heads cannot be told")
        axis, heads = candidates[0], known or lead[2]
        outer = lead[0] * lead[3 - axis]
    if images is not None and outer % images:
        raise NotInOrder(f"{outer} maps for {images} images: neither one each nor equally many windows each")
    return Order(lead, 1 if images is None else outer // images, heads, axis)


def is_over_channels(
    order: Order, shape: tuple[int, int], values: Tensor, owner: tuple[int, ...], images: int, last: bool
) -> bool:
    """Whether a map is over channels (XCiT): V is as wide as there are tokens, and the map is not over them.

    ``shape`` is that of the map, ``owner`` that of what went into the attention module: [B, N, C] or with the
    tokens on a grid; ``last``: its channels are known to be the last axis. Then V's memory decides where the
    map is as wide as there are tokens and V is too: in a channel map its neighbours are rows.
    """
    rows, columns = shape
    if len(owner) < 3 or order.windows > 1 or rows != columns or (images and owner[0] != images):
        return False
    axes = (len(owner) - 1,) if last else (1, len(owner) - 1)
    tokens = {math.prod(size for i, size in enumerate(owner) if i not in (0, axis)) for axis in axes}
    if values.shape[-1] not in tokens:
        return False
    return rows not in tokens or (last and values.stride(-2) < values.stride(-1))
