"""Which tokens are prefix tokens (class, distillation, registers) and which are patches, on what grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

# Learned tokens put before the patches, by the names that timm, Hugging Face, torchvision and vit-pytorch
# use.
_PREFIX_PARAMETERS = (
    "cls_token",
    "class_token",
    "class_embedding",
    "dist_token",
    "distillation_token",
    "reg_token",
    "register_tokens",
)
_MOST_PREFIX_TOKENS = 16  # when probing: more than any published model has (DINOv2: 1 + 4)


@dataclass(frozen=True)
class Split:
    """How one axis of tokens splits into prefix and patches, and how that was told."""

    prefix: int
    grid: tuple[int, int] | None
    decided: str


class PrefixRule:
    """Tells prefix tokens from patches for one model.

    In this order: the number the user gave; the model's own ``num_prefix_tokens``; its learned tokens, by the
    names of the parameters; else the smallest number that leaves a grid of the image's shape. The number must
    leave such a grid: where it does not and all tokens do (patch blocks of CaiT, whose class token joins
    later) there is no prefix.
    """

    def __init__(self, model: nn.Module, given: int | None = None) -> None:
        self.given = given
        self.declared: int | None = None
        self.source = ""
        if given is not None:
            self.declared, self.source = given, f"prefix_tokens={given} as asked for"
            return
        for name, module in model.named_modules():
            count = getattr(module, "num_prefix_tokens", None)
            if isinstance(count, int):
                self.declared, self.source = count, f"num_prefix_tokens={count} of {name or 'the model'}"
                return
        learned = {
            name: p.numel() // p.shape[-1]
            for name, p in model.named_parameters()
            if name.rpartition(".")[2] in _PREFIX_PARAMETERS and p.ndim >= 1 and p.shape[-1] > 0
        }
        if learned:
            self.declared = sum(learned.values())
            self.source = "the learned tokens " + ", ".join(f"{name} ({n})" for name, n in learned.items())

    def split(self, tokens: int, image_size: tuple[int, int] | None) -> Split:
        """Split ``tokens`` tokens of an image of ``image_size`` (height, width) pixels."""
        if self.declared is not None:
            if tokens <= self.declared:
                return Split(tokens, None, f"all {tokens} are prefix tokens: {self.source}")
            if grid := patch_grid(tokens - self.declared, image_size):
                return Split(self.declared, grid, self.source)
            if self.given is not None:
                return Split(self.declared, None, f"{self.source}; the rest is no grid of the image's shape")
            if grid := patch_grid(tokens, image_size):
                return Split(0, grid, f"all {tokens} tokens form the grid {grid[0]} x {grid[1]}")
        for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1):
            if grid := patch_grid(tokens - prefix, image_size):
                return Split(
                    prefix, grid, f"{tokens} tokens = {prefix} + the grid {grid[0]} x {grid[1]} (probed)"
                )
        declared = self.declared or 0
        return Split(
            declared, None, (self.source or "no prefix token found") + "; no grid of the image's shape fits"
        )


def patch_grid(patches: int, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The (rows, columns) of ``patches`` patches of one stride on the image; None if there is no such grid.

    Without an image size, the square grid.
    """
    if image_size is None:
        side = math.isqrt(patches)
        return (side, side) if side * side == patches else None
    height, width = image_size
    for stride in range(1, max(height, width) + 1):
        # A stem may round its output up or down at an edge that the stride does not divide.
        down = (height // stride, width // stride)
        up = (math.ceil(height / stride), math.ceil(width / stride))
        for grid in (down, up):
            if grid[0] * grid[1] == patches:
                return grid
    return None


def window_grid(tokens: int, module: nn.Module | None) -> tuple[int, int] | None:
    """The (rows, columns) of one window: the module's ``window_size`` if that fits, else a square."""
    size = getattr(module, "window_size", None)
    if isinstance(size, tuple | list) and len(size) == 2 and size[0] * size[1] == tokens:
        return (int(size[0]), int(size[1]))
    return patch_grid(tokens, None)
