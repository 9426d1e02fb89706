"""The tokens that leave a block, as [B, N, C] whatever layout the model keeps them in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from deepvit.capturing.maps import aside
from deepvit.capturing.prefix import PrefixRule, Split
from deepvit.capturing.seen import Form, Seen, TokenConsumer, TokenLayout
from deepvit.capturing.spatial import Grids, Shape

At = tuple[Literal["input", "output"], str]


@dataclass
class Known:
    """What a block's attention tells of the tokens around it."""

    widths: set[int] = field(default_factory=set)  # heads times width of a head
    tokens_second: bool = False  # [tokens, B, C]: torch's multi-head attention without batch_first
    windows: int = 1  # in each image
    windowed: Shape | None = None  # [B, windows, n, C]: a shape in which tokens lie window by window (NesT)


def tokens_in_order(
    output: Tensor, images: int, axes: set[int], known: Known, grids: Grids
) -> tuple[Tensor, tuple[int, int] | None, Form] | str:
    """``output`` as [B, N, C], the grid if the layout has one, and the form it had; or the reason why that cannot be told.

    [B, N, C] stays; [N, B, C] (batch second) is turned; [B, h, w, C] and [B, C, h, w] become [B, h·w, C].
    The channel axis is the one that layers which read or made a tensor of this very shape take for it
    (``axes``): a convolution or batch norm the second, a linear layer or layer norm the last. Where no layer
    did, it is the one axis as wide as all heads of the block's attention, if the others are a grid of the
    image.
    """
    shape = tuple(output.shape)
    if output.ndim == 3:
        if images and (shape[0] != images or (known.tokens_second and shape[1] == images)):
            if shape[1] != images or known.windows > 1:
                return f"no axis of {shape} is over {images} images"
            return output.transpose(0, 1), None, "NBC"
        if axes == {1}:
            return output.mT, None, "BCN"
        return output, None, "BNC"
    if output.ndim != 4 or (images and shape[0] != images):
        return f"{shape} is neither [B, N, C] nor on a grid for {images} images"
    if not axes:
        axes = {
            axis
            for axis, grid in ((1, shape[2:]), (3, shape[1:3]))
            if shape[axis] in known.widths and grids.shaped_like_image((grid[0], grid[1]))
        }
    if axes == {3}:
        if shape == known.windowed or not grids.shaped_like_image((shape[1], shape[2])):
            return output.flatten(1, 2), None, "BhwC"
        return output.flatten(1, 2), (shape[1], shape[2]), "BhwC"
    if axes == {1}:
        return output.flatten(2).mT, (shape[2], shape[3]), "BChw"
    why = "layers take both for it" if axes else "no layer reads this shape"
    return f"which axis of {shape} is over channels cannot be told: {why}"


def in_form(tokens: Tensor, form: Form, like: Tensor) -> Tensor:
    """[B, N, C] back in the axes and sizes of ``like``, which ``tokens_in_order`` was given."""
    if form == "NBC":
        return tokens.transpose(0, 1)
    if form == "BNC" or form == "BhwC":
        return tokens.reshape(like.shape)
    return tokens.mT.reshape(like.shape)


class TokenReader:
    """Reads the tokens of every attention block of a pass, keeps them or hands them on."""

    def __init__(
        self,
        seen: Seen,
        prefix: PrefixRule,
        grids: Grids,
        consumer: TokenConsumer | None,
        skip: Callable[[str, Shape, str], None],
    ) -> None:
        self.seen, self.prefix, self.grids, self.consumer, self.skip = seen, prefix, grids, consumer, skip
        self.known: dict[str, Known] = {}

    def read(self, block: str, tensor: Tensor, at: At, axes: set[int]) -> None:
        """Take ``tensor``, which left ``block``; noted as skipped where its axes cannot be told."""
        known = self.known.get(block, Known())
        ordered = tokens_in_order(tensor, self.seen.images, axes, known, self.grids)
        if isinstance(ordered, str):
            self.skip(block, tuple(tensor.shape), f"tokens: {ordered}")
            return
        tokens, grid, form = ordered
        side, module = at
        read_from = f"{side} of {module or 'the model'}"
        if grid is not None:
            split = Split(0, grid, f"{read_from} is on the grid {grid[0]} x {grid[1]}")
        elif tensor.ndim == 4:
            split = Split(0, None, f"{read_from} has its tokens window by window: no grid")
        else:
            split = self.prefix.split(tokens.shape[1], self.grids)
        layout = TokenLayout(
            block=block,
            tokens=tokens.shape[1],
            channels=tokens.shape[2],
            prefix=split.prefix,
            grid=split.grid,
            side=side,
            module=module,
            form=form,
            decided=split.decided,
            suffix=split.suffix,
            sure=split.sure,
        )
        self.seen.token_layout[block] = layout
        if self.consumer is not None:
            with aside(tokens):
                self.consumer(block, tokens.detach(), layout)
        else:
            # A copy: the next block may add to its input in place.
            self.seen.tokens[block] = tokens.detach().clone()
