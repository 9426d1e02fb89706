"""What torch's own functions tell in a pass: which axis holds the channels, and on which grids patches lie.

Nothing is told by the sizes alone: an image 14 pixels wide has an axis of 14 that is no channel axis, and 25
tokens may be five times five or five other things.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.capturing.functions import name_of

Shape = tuple[int, ...]
Grid = tuple[int, int]
# What has read or made tensors of a shape: the axes that held their channels.
Reads = dict[Shape, set[int]]

_FIRST = {F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.group_norm, F.instance_norm, torch.batch_norm}
_LAST = {F.linear, F.layer_norm, F.rms_norm}
_MAPS = {
    *(F.conv2d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    *(F.pixel_unshuffle, torch.max_pool2d),
}
_RESHAPING = frozenset({"reshape", "view", "unflatten", "__getitem__", "cat", "concat"})


def channels_read(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> Reads:
    """The axis over channels of what went into a layer and of what came out, by their shapes."""
    if func in _FIRST:
        last = False
    elif func in _LAST:
        last = True
    else:
        return {}
    if func is not F.linear and last:
        shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape", ())
        if len(shape) != 1:
            return {}
    tensors = (args[0] if args else kwargs.get("input"), out)
    return {
        tuple(t.shape): {t.ndim - 1 if last else 1} for t in tensors if isinstance(t, Tensor) and t.ndim >= 3
    }


def merge(reads: Reads, more: Reads) -> None:
    """Add what was read to what is known already."""
    for shape, axes in more.items():
        reads.setdefault(shape, set()).update(axes)


@dataclass
class Grids:
    """The grids of patches that the network itself has made so far in a pass, and the windows cut from them."""

    images: int = 0
    image_size: Grid | None = None
    flat: list[Grid] = field(default_factory=list)
    volumes: list[tuple[int, int, int]] = field(default_factory=list)  # of a video: time, rows, columns
    windows: list[Grid] = field(default_factory=list)

    def begin(self, images: int, image_size: Grid | None) -> None:
        """Forget the pass before."""
        self.images, self.image_size = images, image_size
        self.flat.clear()
        self.volumes.clear()
        self.windows.clear()

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        """Note the grid that a function makes: a convolution, a pooling, a cutting into patches or windows."""
        if func is F.unfold:
            self._unfold(*args, **kwargs)
        elif not isinstance(out, Tensor) or out.ndim < 4 or not self._of_images(out):
            return
        elif func in _MAPS:
            if out.ndim == 4:
                self._add(self.flat, (out.shape[2], out.shape[3]))
        elif func is F.conv3d and out.ndim == 5:
            self._add(self.volumes, (out.shape[2], out.shape[3], out.shape[4]))
        elif (name := name_of(func)) in _RESHAPING:
            source = first_tensor(args)
            if source is None:
                return
            if out.ndim == 4 and self._is_channels_last(source, out, name):
                self._add(self.flat, (out.shape[1], out.shape[2]))
            elif out.ndim == 6 and source.ndim == 4:
                self._cut(tuple(source.shape), tuple(out.shape))
        elif name == "unfold" and out.ndim == 6:  # Tensor.unfold of rows, then of columns
            self._add(self.flat, (out.shape[2], out.shape[3]))

    def of(self, patches: int) -> Grid | None:
        """The grid of so many patches that was made last; None where there was none."""
        return next((g for g in reversed(self.flat) if g[0] * g[1] == patches), None)

    def volume_of(self, patches: int) -> tuple[int, int, int] | None:
        """The same of a video."""
        return next((v for v in reversed(self.volumes) if math.prod(v) == patches), None)

    def window_of(self, tokens: int) -> Grid | None:
        """The shape of windows of so many tokens, where the pass made windows of one such shape only."""
        found = {w for w in self.windows if w[0] * w[1] == tokens}
        return found.pop() if len(found) == 1 else None

    def shaped_like_image(self, grid: Grid) -> bool:
        """Whether a grid can come of the image by one stride, rounded up or down at its edge."""
        if self.image_size is None or min(grid) < 1:
            return False
        strides: set[int] | None = None
        for pixels, cells in zip(self.image_size, grid, strict=True):
            fits = {s for s in range(1, pixels + 1) if pixels // s == cells or math.ceil(pixels / s) == cells}
            strides = fits if strides is None else strides & fits
        return bool(strides)

    def _is_channels_last(self, source: Tensor, out: Tensor, name: str) -> bool:
        """[B, h·w, C] -> [B, h, w, C], or a part or joining of such: not heads split off the channels."""
        if not self.shaped_like_image((out.shape[1], out.shape[2])):
            return False
        if name in ("reshape", "view", "unflatten"):
            return source.ndim == 3 and source.shape[-1] == out.shape[-1]
        return source.ndim == 4

    def _cut(self, source: Shape, out: Shape) -> None:
        """[B, C, h·p, w·q] -> [B, C, h, p, w, q] or [B, h·p, w·q, C] -> [B, h, p, w, q, C]."""
        if source[2:] == (out[2] * out[3], out[4] * out[5]):
            outer, inner = (out[2], out[4]), (out[3], out[5])
        elif source[1:3] == (out[1] * out[2], out[3] * out[4]):
            outer, inner = (out[1], out[3]), (out[2], out[4])
        else:
            return
        self._add(self.flat, outer)
        self._add(self.windows, outer)  # every outer.th pixel: MaxViT's grid, MobileViT's patches
        self._add(self.windows, inner)

    def _unfold(
        self, input: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
    ) -> None:
        k, d, p, s = (
            x if isinstance(x, tuple | list) else (x, x) for x in (kernel_size, dilation, padding, stride)
        )
        sizes = [(n + 2 * p[i] - d[i] * (k[i] - 1) - 1) // s[i] + 1 for i, n in enumerate(input.shape[-2:])]
        self._add(self.flat, (sizes[0], sizes[1]))

    def _of_images(self, out: Tensor) -> bool:
        return self.images > 0 and out.shape[0] % self.images == 0

    @staticmethod
    def _add(known: list[Any], shape: tuple[int, ...]) -> None:
        if math.prod(shape) < 2:  # pooled to one place: no patches
            return
        if shape in known:
            known.remove(shape)
        known.append(shape)


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor in an argument list or output, in tuples, lists and mappings too."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            if (found := first_tensor(item)) is not None:
                return found
    return None


def in_words(grids: Iterable[tuple[int, ...]]) -> str:
    """``4 x 4, 2 x 2``."""
    return ", ".join(" x ".join(map(str, grid)) for grid in grids)
