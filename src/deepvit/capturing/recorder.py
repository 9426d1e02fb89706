"""Puts what is seen where it belongs: names the block, orders the axes, keeps or hands on, notes checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from deepvit.capturing.axes import NotInOrder, Order, is_over_channels, order_of
from deepvit.capturing.blocks import BlockNames
from deepvit.capturing.frames import Frame, Frames, first_tensor
from deepvit.capturing.maps import aside, exact
from deepvit.capturing.prefix import PrefixRule, Split, window_grid
from deepvit.capturing.seen import (
    AttentionConsumer,
    Check,
    MapLayout,
    Seen,
    Skipped,
    TokenConsumer,
    TokenLayout,
)
from deepvit.capturing.tokens import tokens_in_order
from deepvit.errors import UserError


@dataclass(frozen=True)
class Options:
    """What to capture; the arguments of :func:`deepvit.capture`."""

    blocks: tuple[str, ...] | tuple[int, ...] | None
    attention: bool
    tokens: bool
    qkv: bool
    prefix_tokens: int | None
    on_attention: AttentionConsumer | None
    on_softmax: AttentionConsumer | None
    on_tokens: TokenConsumer | None
    on_mismatch: str


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


class Recorder:
    """Fills a ``Seen`` while the model runs."""

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.options = options
        self.seen = Seen()
        asked = options.blocks or ()
        self.named = [b for b in asked if isinstance(b, str)] or None
        self.numbers = {b for b in asked if isinstance(b, int)} or None
        self.names = BlockNames(model, self.named)
        self.prefix = PrefixRule(model, options.prefix_tokens)
        self.paused = False  # a fused module runs as the model has it: nobody looks
        self.frames = Frames(model, self._started, self._ended)
        self._first: nn.Module | None = None  # the module that begins each forward pass
        self._times: dict[str, int] = {}  # how often each key occurred in this pass
        self._blocks_now: list[str] = []  # attention blocks of this pass, in order
        self._channels: dict[str, set[int]] = {}  # of each block's attention, by which a grid's axes are told
        self._open: str | None = None  # a block without a forward of its own, whose tokens are still to come

    # --- where ---

    def site(self, lead: Sequence[int], rows: int, columns: int, values: Tensor | None) -> Site | None:
        """Where the attention that runs now belongs; None (and noted) if it is not wanted or has no place.

        ``lead`` are the sizes of the map's leading axes; ``values`` [..., columns, width] is its V, if at
        hand. Raises ``UserError`` for a map over channels.
        """
        stack = self.frames.stack
        owner = stack[-1] if stack else None
        block = None if owner is None else self.names.block_of(owner.name)
        shape = (*lead, rows, columns)
        if block is None and self.named is not None:
            return None
        if owner is None or block is None:
            where = "" if owner is None else owner.name
            self.skip(where, shape, "an attention outside of every repeated block")
            return None
        if not self._wanted(block):
            return None
        try:
            order = order_of(tuple(lead), self.seen.images or None, owner.module)
        except NotInOrder as reason:
            self.skip(owner.name, shape, str(reason))
            return None
        if values is not None and is_over_channels(order, rows, values, owner.shape):
            raise UserError(
                f"{owner.name}: its attention maps are over channels ({rows} x {columns} in each head), "
                "not over tokens: they cannot be measured; choose others by blocks=[...] or another model"
            )
        key = self.names.key_of(block, owner.name)
        count = self._times[key] = self._times.get(key, 0) + 1
        for frame in stack:
            if frame.name == block:
                frame.saw_attention = True
        if not self.names.is_called(block):
            self._open = block
        widths = set() if values is None else {order.heads * values.shape[-1]}
        self._channels[block] = widths | set((owner.shape or ())[-1:])
        return Site(block, key if count == 1 else f"{key}#{count}", owner, order)

    def _wanted(self, block: str) -> bool:
        if block not in self._blocks_now:
            self._blocks_now.append(block)
        if block not in self.seen.blocks:
            self.seen.blocks.append(block)
        return self.numbers is None or self._blocks_now.index(block) in self.numbers

    def skip(self, module: str, shape: Sequence[int], reason: str) -> None:
        """Note what was seen and is not captured, once."""
        skipped = Skipped(module, tuple(shape), reason)
        if skipped not in self.seen.skipped:
            self.seen.skipped.append(skipped)

    # --- maps ---

    def record(
        self,
        site: Site,
        *,
        queries: Tensor | None,
        keys: Tensor | None,
        values: Tensor | None,
        attention: Tensor,
        softmax: Tensor | None,
        source: str,
        measured: str,
        head_dim: int,
        check: Check,
    ) -> None:
        """Keep or hand on one verified map, [B * windows, heads, N, M]; ``softmax`` where it differs.

        Raises ``UserError`` where the check fails, unless mismatches are only to be flagged.
        """
        layout = self._layout(site, attention.shape[-2], attention.shape[-1], head_dim, source, measured)
        self.seen.layout[site.key] = layout
        self.note(check)
        seen, options = self.seen, self.options
        if options.qkv:
            missing = [n for n, t in (("queries", queries), ("keys", keys), ("values", values)) if t is None]
            if missing:
                self.skip(
                    site.owner.name, attention.shape, f"{', '.join(missing)} do not reach torch as tensors"
                )
            for kept, tensor in ((seen.queries, queries), (seen.keys, keys), (seen.values, values)):
                if tensor is not None:
                    kept[site.key] = tensor.detach()
        with aside(attention):
            self._hand_on(site.key, attention, softmax, layout)

    def _hand_on(self, key: str, attention: Tensor, softmax: Tensor | None, layout: MapLayout) -> None:
        seen, options = self.seen, self.options
        if softmax is not None:
            if options.on_softmax is not None:
                options.on_softmax(key, exact(softmax), layout)
            elif options.on_attention is None:
                seen.softmax[key] = exact(softmax)
        if options.on_attention is not None:
            options.on_attention(key, exact(attention), layout)
        else:
            seen.attention[key] = exact(attention)

    def record_layout(self, site: Site, rows: int, columns: int, head_dim: int, source: str) -> None:
        """Note that an attention is there, where maps are not asked for."""
        self.seen.layout[site.key] = self._layout(site, rows, columns, head_dim, source, "not measured")

    def note(self, check: Check) -> None:
        """Add a check; raises ``UserError`` where it fails, unless mismatches are only to be flagged."""
        earlier = self.seen.checks.get(check.key)
        if earlier is not None:
            error = max(earlier.error, check.error) if not math.isnan(check.error) else check.error
            check = replace(check, error=error, forwards=earlier.forwards + 1)
        self.seen.checks[check.key] = check
        if not check.passed and self.options.on_mismatch == "error":
            raise UserError(
                f"{check.key}: the captured map does not give the model's own attention output ({check.how}: "
                f"relative difference {check.error:.2g}, allowed {check.tolerance:.0e}); "
                "on_mismatch='flag' goes on and says so in .checks"
            )

    def _layout(
        self, site: Site, rows: int, columns: int, width: int, source: str, measured: str
    ) -> MapLayout:
        windows, size = site.order.windows, self.seen.image_size
        if windows > 1:
            query_grid, key_grid = (
                window_grid(rows, site.owner.module),
                window_grid(columns, site.owner.module),
            )
            query_prefix = key_prefix = 0
            decided = f"windows, {windows} in each image, hold patches only"
        else:
            query, key = self.prefix.split(rows, size), self.prefix.split(columns, size)
            query_prefix, query_grid = query.prefix, query.grid
            key_prefix, key_grid = key.prefix, key.grid
            decided = key.decided if query == key else f"queries: {query.decided}; keys: {key.decided}"
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
            source=source,
            measured=measured,
            decided=decided,
        )

    # --- forward passes and tokens ---

    def _started(self, frame: Frame, tensor: Tensor | None) -> None:
        if not self.frames.stack and (self._first is None or self._first is frame.module):
            self._begin(frame.module, tensor)
        if self._open is not None and not self._is_within(frame.name, self._open):
            block, self._open = self._open, None
            if tensor is not None:
                self._tokens(block, tensor, f"input of {frame.name or 'the model'}")

    def _begin(self, module: nn.Module, tensor: Tensor | None) -> None:
        self._first = module
        self._times.clear()
        self._blocks_now.clear()
        self._open = None
        self.seen.forwards += 1
        if tensor is None:
            return
        self.seen.images = tensor.shape[0]
        if tensor.ndim == 4:
            self.seen.image_size = (tensor.shape[-2], tensor.shape[-1])

    def _ended(self, frame: Frame, output: Any) -> None:
        if self._open is not None and self._is_within(self._open, frame.name):
            # The last block of its parent: what the parent returns is what left the block.
            block, self._open = self._open, None
            if (tensor := first_tensor(output)) is not None:
                self._tokens(block, tensor, f"output of {frame.name or 'the model'}")
        if frame.saw_attention and (tensor := first_tensor(output)) is not None:
            self._tokens(frame.name, tensor, f"output of {frame.name}")

    @staticmethod
    def _is_within(name: str, ancestor: str) -> bool:
        return name == ancestor or not ancestor or name.startswith(ancestor + ".")

    def _tokens(self, block: str, tensor: Tensor, read_from: str) -> None:
        if not self.options.tokens:
            return
        ordered = tokens_in_order(tensor, self.seen.images, self._channels.get(block, set()))
        if isinstance(ordered, str):
            self.skip(block, tensor.shape, f"tokens: {ordered}")
            return
        tokens, grid = ordered
        split = self.prefix.split(tokens.shape[1], self.seen.image_size)
        if grid is not None:
            split = Split(0, grid, f"{read_from} is on the grid {grid[0]} x {grid[1]}")
        layout = TokenLayout(
            block, tokens.shape[1], tokens.shape[2], split.prefix, split.grid, read_from, split.decided
        )
        self.seen.token_layout[block] = layout
        if self.options.on_tokens is not None:
            with aside(tokens):
                self.options.on_tokens(block, tokens.detach(), layout)
        else:
            # A copy: the next block may add to its input in place.
            self.seen.tokens[block] = tokens.detach().clone()

    # --- the end ---

    def finish(self) -> None:
        """Refuse a result that is empty or lacks what was asked for; in one line, with the reason."""
        seen = self.seen
        if not seen.forwards:
            raise UserError("the model was not called inside the with block of capture")
        if silent := [name for name in self.named or () if name not in seen.blocks]:
            raise UserError(
                f"blocks: {', '.join(silent)} had no attention; without blocks= all that have are found"
            )
        if not seen.blocks:
            reasons = "; ".join(f"{s.module or 'the model'}: {s.reason} {s.shape}" for s in seen.skipped[:3])
            raise UserError(
                "no attention over tokens was found in this model"
                + (f" (seen and left out: {reasons})" if reasons else "")
                + ": it has none, or keeps it in compiled code or a kernel of its own"
            )
        if self.numbers is not None and (beyond := sorted(n for n in self.numbers if n >= len(seen.blocks))):
            raise UserError(
                f"blocks: {', '.join(map(str, beyond))} had no attention; the model's attention blocks are "
                f"0 to {len(seen.blocks) - 1}: {seen.blocks[0]} to {seen.blocks[-1]}"
            )
        if self.options.attention and not seen.layout:
            reasons = "; ".join(f"{s.module}: {s.reason}" for s in seen.skipped[:3])
            raise UserError(f"attention was seen and could not be captured: {reasons}")
