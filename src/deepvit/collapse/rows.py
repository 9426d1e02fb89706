"""The rows of a diagnosis: one per attention of the model, what its numbers refer to and compare with."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import nn

from deepvit.capturing import MapLayout, Seen, TokenLayout
from deepvit.collapse.results import BlockFacts


@dataclass
class Row:
    """One attention: facts for the report, the keys under which capture names it, and its neighbours.

    ``previous``: row whose maps this one's are compared with, ``None`` when there is none of the same shape.
    ``carries_tokens``: the tokens that leave the block are this row's (the last attention of its block).
    """

    facts: BlockFacts
    key: str
    block: str
    layout: MapLayout
    tokens: TokenLayout | None
    carries_tokens: bool
    previous: int | None = None

    @property
    def keys(self) -> int:
        """How many tokens a query can attend to."""
        return self.layout.keys

    @property
    def patches(self) -> int:
        """How many patch tokens leave the block; 0 when unknown or none."""
        return 0 if self.tokens is None else self.tokens.tokens - self.tokens.prefix - self.tokens.suffix


def rows_of(seen: Seen, model: nn.Module, selected: Sequence[int] | None = None) -> list[Row]:
    """Rows of a captured forward pass, in order of execution; ``selected`` keeps those of some blocks.

    Maps are compared only where they have the same shape and mean the same tokens: same windows, same
    heads. Windowed maps are compared with the nearest earlier block that cuts the image the same way
    (shifted windows alternate).
    """
    # A key occurs once per forward; dictionaries keep the order of execution.
    rows = []
    last_of_block = {layout.block: key for key, layout in seen.layout.items()}
    groups: dict[Hashable, int] = {}
    for index, (key, layout) in enumerate(seen.layout.items()):
        carries = last_of_block[layout.block] == key
        tokens = seen.token_layout.get(layout.block)
        kind = _kind(layout)
        group = None if kind == "class" else groups.setdefault(_group(layout, model), len(groups))
        grid = tokens.grid if tokens and tokens.grid else layout.query_grid
        pixels = seen.image_size[0] / grid[0] if seen.image_size and grid else None
        facts = BlockFacts(
            index=index,
            name=key,
            kind=kind,
            group=group,
            heads=layout.heads,
            queries=layout.queries,
            keys=layout.keys,
            prefix=tokens.prefix if tokens else layout.query_prefix,
            grid=list(grid) if grid else None,
            channels=tokens.channels if tokens else None,
            patch_pixels=pixels,
        )
        rows.append(Row(facts, key, layout.block, layout, tokens if carries else None, carries))
    if selected is not None:
        wanted = {seen.blocks[number] for number in selected}
        rows = [row for row in rows if row.block in wanted]
    _link(rows)
    return rows


def _kind(layout: MapLayout) -> str:
    if layout.windows > 1:
        return "windowed"
    if layout.queries <= layout.query_prefix or layout.queries == 1:
        return "class"
    return "global" if layout.queries == layout.keys else "pooled"


def _group(layout: MapLayout, model: nn.Module) -> Hashable:
    shape = (layout.windows, layout.heads, layout.queries, layout.keys, layout.query_prefix)
    if layout.windows == 1:
        return shape
    # Equal shapes do not make equal windows: shifted windows (Swin) and grids (MaxViT) hold other tokens.
    return (*shape, layout.key[len(layout.block) :], _shift(layout.module, model))


def _shift(module: str, model: nn.Module) -> Hashable:
    """The shift of the windows: the attribute of the attention or of the nearest module around it."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        shift = getattr(model.get_submodule(".".join(parts[:length])), "shift_size", None)
        if shift is not None:
            return tuple(shift) if isinstance(shift, Sequence) else shift
    return None


def _link(rows: list[Row]) -> None:
    for position, row in enumerate(rows):
        if row.facts.group is None:
            continue
        reach = 2 if row.facts.kind == "windowed" else 1
        for earlier in range(position - 1, -1, -1):
            near = row.facts.index - rows[earlier].facts.index <= reach
            if near and rows[earlier].facts.group == row.facts.group:
                row.previous = earlier
                break
