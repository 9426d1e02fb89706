"""Puts what is seen where it belongs: names the block, orders the axes, keeps or hands on, notes checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from deepvit.capturing.axes import NotInOrder, Order, is_over_channels, order_of
from deepvit.capturing.blocks import BlockNames
from deepvit.capturing.frames import FUSED, Frame, Frames
from deepvit.capturing.layouts import Site, map_layout
from deepvit.capturing.maps import aside, exact
from deepvit.capturing.options import Options
from deepvit.capturing.outcome import notes_of, require_result
from deepvit.capturing.prefix import PrefixRule
from deepvit.capturing.seen import Check, MapLayout, Seen, Skipped
from deepvit.capturing.spatial import Grids, Reads, first_tensor
from deepvit.capturing.tokens import At, Known, TokenReader
from deepvit.errors import UserError


class Recorder:
    """Fills a ``Seen`` while the model runs."""

    def __init__(
        self, model: nn.Module, options: Options, leave: tuple[type[nn.Module], ...] = FUSED
    ) -> None:
        self.options = options
        self.seen = Seen()
        self.named = options.names or None
        self.numbers = options.numbers or None
        self.names = BlockNames(model, self.named)
        self.prefix = PrefixRule(model, options.prefix_tokens)
        self.paused = False  # a fused module runs as the model has it: nobody looks
        self.frames = Frames(model, self._started, self._ended, leave)
        self._first: nn.Module | None = None  # the module that begins each forward pass
        self._times: dict[str, int] = {}  # how often each key occurred in this pass
        self._blocks_now: list[str] = []  # attention blocks of this pass, in order
        self.grids = Grids()
        self.over_channels: dict[str, tuple[str, int]] = {}  # block: its attention, and rows of its map
        self._reader = TokenReader(self.seen, self.prefix, self.grids, options.on_tokens, self.skip)
        self._open: str | None = None  # a block without a forward of its own, whose tokens are still to come

    # --- where ---

    def site(self, lead: Sequence[int], rows: int, columns: int, values: Tensor | None) -> Site | None:
        """Where the attention that runs now belongs; None (and noted) if it is not wanted or has no place.

        ``lead`` are the sizes of the map's leading axes; ``values`` [..., columns, width] is its V, if at
        hand. A map over channels has no place; that there was one is refused in the end.
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
        if values is not None and self._is_over_channels(order, (rows, columns), values, owner):
            self.over_channels.setdefault(block, (owner.name, rows))
            self.skip(owner.name, shape, "its maps are over channels")
            return None
        key = self.names.key_of(block, owner.name)
        count = self._times[key] = self._times.get(key, 0) + 1
        for frame in stack:
            if frame.name == block:
                frame.saw_attention = True
        if not self.names.is_called(block):
            self._open = block
        self._reader.known[block] = Known(
            widths=set() if values is None else {order.heads * values.shape[-1]},
            tokens_second=isinstance(owner.module, nn.MultiheadAttention) and not owner.module.batch_first,
            windows=order.windows,
            windowed=owner.shape
            if owner.shape and owner.shape[1:3] == (order.windows, rows) and order.windows > 1
            else None,
        )
        return Site(block, key if count == 1 else f"{key}#{count}", owner, order)

    def _is_over_channels(self, order: Order, shape: tuple[int, int], values: Tensor, owner: Frame) -> bool:
        if owner.shape is None:
            return False
        last = len(owner.shape) == 3 or self._reads_of(owner.shape) == {len(owner.shape) - 1}
        return is_over_channels(order, shape, values, owner.shape, self.seen.images, last)

    def _reads_of(self, shape: tuple[int, ...]) -> set[int]:
        """Which axes of a tensor of this shape layers have taken for channels, the nearest of them first."""
        return next((f.reads[shape] for f in reversed(self.frames.stack) if shape in f.reads), set())

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
    ) -> Tensor | None:
        """Keep or hand on one verified map, [B * windows, heads, N, M]; ``softmax`` where it differs.

        Returns the map that is to multiply V in its place; None, as always when only looking on, leaves it.
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
        return None

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

    def wants_map(self, site: Site) -> bool:
        """Whether the map of this attention is to be formed."""
        return self.options.attention

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
        return map_layout(site, (rows, columns), width, (source, measured), self.prefix, self.grids)

    # --- forward passes and tokens ---

    def _started(self, frame: Frame, tensor: Tensor | None) -> None:
        if not self.frames.stack and (self._first is None or self._first is frame.module):
            self._begin(frame.module, tensor)
        if self._open is not None and not self._is_within(frame.name, self._open):
            block, self._open = self._open, None
            if tensor is not None:
                self._tokens(block, tensor, ("input", frame.name), {})

    def _begin(self, module: nn.Module, tensor: Tensor | None) -> None:
        self._first = module
        self._times.clear()
        self._blocks_now.clear()
        self._open = None
        self.seen.forwards += 1
        if tensor is None:
            self.grids.begin(0, None)
            return
        self.seen.images = tensor.shape[0]
        self.seen.image_size = (tensor.shape[-2], tensor.shape[-1]) if tensor.ndim == 4 else None
        self.grids.begin(self.seen.images, self.seen.image_size)

    def _ended(self, frame: Frame, output: Any) -> None:
        if self._open is not None and self._is_within(self._open, frame.name):
            # The last block of its parent: what the parent returns is what left the block.
            block, self._open = self._open, None
            if (tensor := first_tensor(output)) is not None:
                self._tokens(block, tensor, ("output", frame.name), {})
        if frame.saw_attention and (tensor := first_tensor(output)) is not None:
            self._tokens(frame.name, tensor, ("output", frame.name), frame.reads)

    @staticmethod
    def _is_within(name: str, ancestor: str) -> bool:
        return name == ancestor or not ancestor or name.startswith(ancestor + ".")

    def _tokens(self, block: str, tensor: Tensor, at: At, reads: Reads) -> None:
        if not self.options.tokens:
            return
        shape = tuple(tensor.shape)
        # Layers of the block itself say more than what ran before it, and that more than nothing.
        axes = reads.get(shape) or self._reads_of(shape)
        self._reader.read(block, tensor, at, axes)

    def finish(self) -> None:
        """Refuse a result that is empty or lacks what was asked for; in one line, with the reason."""
        require_result(self.seen, self.options, self.over_channels)
        self.seen.notes += notes_of(self.seen)
