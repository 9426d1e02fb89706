"""Where an attention belongs and what the axes of its map mean."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deepvit.capturing.axes import Order
from deepvit.capturing.frames import Frame
from deepvit.capturing.maps import exact
from deepvit.capturing.prefix import PrefixRule, window_grid
from deepvit.capturing.seen import MapLayout
from deepvit.capturing.spatial import Grids


@dataclass(frozen=True)
class Site:
    """An attention that is being computed and is wanted: where, and in which order its axes are."""

    block: str
    key: str
    owner: Frame
    order: Order

    def arrange(self, t: Tensor) -> Tensor:
        """Any tensor of this attention as [B * windows, heads, tokens, width]."""
        return self.order.apply(t)

    def put(self, matrix: Tensor, values: Tensor, out: Tensor) -> Tensor:
        """``matrix`` times ``values`` (both arranged) with the axes and the dtype of ``out``."""
        return self.order.undo(exact(matrix) @ exact(values)).to(out.dtype)


def map_layout(
    site: Site, shape: tuple[int, int], width: int, said: tuple[str, str], prefix: PrefixRule, grids: Grids
) -> MapLayout:
    """The layout of a map of ``shape`` (rows, columns), V ``width`` wide; ``said``: its source, what it is."""
    rows, columns = shape
    windows, sure = site.order.windows, True
    if windows > 1:
        module = site.owner.module
        query_grid, key_grid = (window_grid(n, module, grids) for n in shape)
        query_prefix = key_prefix = 0
        decided = f"windows, {windows} in each image, hold patches only"
        if query_grid is None or key_grid is None:
            decided, sure = f"{decided}; their shape is not known", False
    else:
        query, key = prefix.split(rows, grids), prefix.split(columns, grids)
        query_prefix, key_prefix = query.prefix, key.prefix
        # Who reads a map over the image takes all that follows the prefix for patches.
        query_grid, key_grid = (None if side.suffix else side.grid for side in (query, key))
        decided = key.decided if query == key else f"queries: {query.decided}; keys: {key.decided}"
        sure = query.sure and key.sure
        if query.suffix or key.suffix:
            decided += ": no map over the image"
    return MapLayout(
        key=site.key,
        block=site.block,
        module=site.owner.name,
        heads=site.order.heads,
        queries=rows,
        keys=columns,
        head_dim=width,
        windows=windows,
        query_prefix=query_prefix,
        key_prefix=key_prefix,
        query_grid=query_grid,
        key_grid=key_grid,
        source=said[0],
        measured=said[1],
        decided=decided,
        sure=sure,
    )
