"""A few chosen images and their attention maps, small enough to put into a report."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deepvit.capturing import MapLayout, TokenLayout
from deepvit.collapse.plan import Plan
from deepvit.collapse.results import BlockMap, BlockPatches, ImageMaps
from deepvit.collapse.rows import Row

_LONGEST_SIDE = 320
# Besides the class token these places of the image ask, as shares of its height and width.
_ASKING = ((0.25, 0.25), (0.5, 0.5), (0.75, 0.75))
# Bytes of maps that one image may take: patches ask only where that keeps a report of four images small.
_BYTES_AN_IMAGE = 1_000_000


class ChosenMaps:
    """Keeps the maps of at most ``count`` images: what the class token, or else the mean query, attends to.

    Three patches of each image ask as well, where queries and keys are the same patches and the maps fit.
    They are spread over the images on which attention is measured. Windowed maps are not kept: a window is
    not the image. ``normalize`` is the (mean, std) that the images were normalised with, undone for
    display; ``None``: each image is stretched to the full range.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        plan: Plan,
        images: int | None,
        count: int,
        normalize: tuple[Sequence[float], Sequence[float]] | None,
    ) -> None:
        self.rows = {row.key: row for row in rows}
        self.blocks = {row.block: row for row in rows if row.tokens is not None}
        self.count, self.normalize = count, normalize
        measured = count if images is None else -(-images // plan.attention_every)
        self.every = plan.attention_every * max(1, measured // max(1, count))
        self.images: list[ImageMaps] = []
        self._now: list[tuple[int, ImageMaps]] = []

    def begin(self, numbers: Sequence[int], images: Tensor, labels: Sequence[str]) -> None:
        """Start a forward pass over images [B,3,h,w] with these numbers; keeps the chosen ones' pixels."""
        self._now = []
        for place, number in enumerate(numbers):
            if number % self.every == 0 and len(self.images) < self.count:
                pixels = displayed(images[place], self.normalize)
                data = base64.b64encode(pixels.numpy().tobytes()).decode()
                self.images.append(ImageMaps(labels[place], list(pixels.shape), data))
                self._now.append((place, self.images[-1]))

    def on_attention(self, key: str, maps: Tensor, layout: MapLayout) -> None:
        """Keep the chosen images' part of the maps [B,H,Q,K] of one block."""
        row = self.rows.get(key)
        if row is None or layout.windows > 1 or layout.key_grid is None:
            return
        for place, image in self._now:
            asked: list[tuple[str, Tensor, list[int] | None]]
            if layout.query_prefix > 0:
                asked = [("class token", maps[place, :, 0], None)]
            else:
                asked = [("mean of all queries", maps[place].mean(-2), None)]
            for r, c in self._patches(layout):
                query = layout.query_prefix + r * layout.key_grid[1] + c
                asked.append((f"patch ({r}, {c})", maps[place, :, query], [r, c]))
            for name, rows, patch in asked:
                values = rows[:, layout.key_prefix :].unflatten(-1, layout.key_grid)
                image.maps.append(_encoded(row.facts.index, name, values.to("cpu", torch.float32), patch))

    def on_tokens(self, block: str, tokens: Tensor, layout: TokenLayout) -> None:
        """Keep how long and how alike the patches of the chosen images are after a block, tokens [B,N,C]."""
        row = self.blocks.get(block)
        if row is None or layout.grid is None or not self._now:
            return
        rows, columns = layout.grid
        if layout.tokens - layout.prefix != rows * columns or rows * columns < 2:
            return
        pairs = rows * columns * (rows * columns - 1) // 2
        for place, image in self._now:
            patches = tokens[place, layout.prefix :].detach().to(torch.float32)
            norms = torch.linalg.vector_norm(patches, dim=-1)
            share = (norms / norms.median().clamp_min(torch.finfo(torch.float32).tiny)).cpu()
            highest = float(share.max())
            similarity = ""
            if pairs * len(self.blocks) <= _BYTES_AN_IMAGE:
                units = F.normalize(patches, dim=-1)
                upper = torch.triu_indices(len(units), len(units), 1, device=units.device)
                similarity = _bytes(((units @ units.mT)[upper[0], upper[1]] + 1) / 2)
            image.patches.append(
                BlockPatches(
                    row.facts.index, [rows, columns], highest, _bytes(share / max(highest, 1e-12)), similarity
                )
            )

    def _patches(self, layout: MapLayout) -> list[tuple[int, int]]:
        """Patches that ask, by row and column."""
        grid = layout.query_grid
        if grid is None or grid != layout.key_grid or min(grid) < len(_ASKING):
            return []
        cells = grid[0] * grid[1]
        if layout.heads * cells * (1 + len(_ASKING)) * len(self.rows) > _BYTES_AN_IMAGE:
            return []
        return [(int(down * grid[0]), int(across * grid[1])) for down, across in _ASKING]


def _encoded(block: int, query: str, values: Tensor, patch: list[int] | None = None) -> BlockMap:
    low, high = float(values.min()), float(values.max())
    # A constant map has no range; every byte is then 0 and stands for `low`.
    scale = 255.0 / (high - low) if high > low else 0.0
    return BlockMap(block, query, list(values.shape), low, high, _bytes((values - low) * scale / 255), patch)


def _bytes(shares: Tensor) -> str:
    """Numbers from 0 to 1 as base64 of a byte each."""
    levels = (255 * shares).round().clamp(0, 255).to("cpu", torch.uint8)
    return base64.b64encode(levels.numpy().tobytes()).decode()


def displayed(image: Tensor, normalize: tuple[Sequence[float], Sequence[float]] | None) -> Tensor:
    """A normalised image [C,h,w] as uint8 [h,w,3], its longest side at most 320 pixels."""
    image = image.detach().to("cpu", torch.float32)
    if image.shape[0] != 3:
        image = image.mean(0, keepdim=True).expand(3, -1, -1)
    if normalize is not None:
        mean, std = (torch.as_tensor(values, dtype=torch.float32)[:, None, None] for values in normalize)
        image = image * std + mean
    else:
        low, high = image.amin(), image.amax()
        image = (image - low) / (high - low).clamp_min(1e-6)
    factor = _LONGEST_SIDE / max(image.shape[-2:])
    if factor < 1:
        image = F.interpolate(image[None], scale_factor=factor, mode="bilinear", antialias=True)[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
