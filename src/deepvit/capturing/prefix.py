"""Which tokens are prefix tokens (class, distillation, registers) and which are patches, on what grid."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import nn

from deepvit.capturing.spatial import Grid, Grids, in_words

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
_SUFFIX_PARAMETERS = ("detection_tokens", "det_token", "det_tokens")  # behind the patches: YOLOS
# Learned tokens that ask for something and are no patches: DETR, Mask2Former, Q-Former.
_QUERIES = (
    "query_position_embeddings",
    "query_embed",
    "query_embeddings",
    "query_tokens",
    "queries_embedder",
)
_MOST_PREFIX_TOKENS = 16  # when probing: more than any published model has (DINOv2: 1 + 4)


@dataclass(frozen=True)
class Split:
    """How one axis of tokens splits into prefix, patches and what is behind them, and how that was told."""

    prefix: int
    grid: Grid | None
    decided: str
    sure: bool = True
    suffix: int = 0


class PrefixRule:
    """Tells prefix tokens from patches for one model.

    The number of prefix tokens is, in this order: what the user gave; the model's own ``num_prefix_tokens``;
    its learned tokens, by the names of the parameters. Where none of them says a number, and all tokens are
    not one grid, the smallest number that leaves a grid is taken, and said to be not sure.

    Patches have a grid only where the network made one of exactly so many places in this pass (a
    convolution, pooling, cutting into patches); where it has shown none (patches cut in a way that nothing
    shows), a grid of the image's shape is guessed, and said to be not sure.
    """

    def __init__(self, model: nn.Module, given: int | None = None) -> None:
        self.given = given
        self.declared: int | None = None
        self.source = ""
        self.suffix, self.suffix_source = _learned(model, _SUFFIX_PARAMETERS)
        self.queries = {
            p.shape[-2] if p.ndim > 1 else 1: name
            for name, p in model.named_parameters()
            if any(part in _QUERIES for part in name.split("."))
        }
        self.unrolled = next(
            (
                name or type(m).__name__
                for name, m in model.named_modules()
                if "Unroll" in type(m).__name__ or hasattr(m, "unroll_schedule")
            ),
            None,
        )
        if given is not None:
            self.declared, self.source = given, f"prefix_tokens={given} as asked for"
            return
        for name, module in model.named_modules():
            count = getattr(module, "num_prefix_tokens", None)
            if isinstance(count, int):
                self.declared, self.source = count, f"num_prefix_tokens={count} of {name or 'the model'}"
                return
        count, names = _learned(model, _PREFIX_PARAMETERS)
        if count:
            self.declared, self.source = count, f"the learned tokens {names}"

    def split(self, tokens: int, grids: Grids) -> Split:
        """Split ``tokens`` tokens of a network that has made these grids in this pass."""
        found = self._split(tokens, grids)
        if self.unrolled and found.grid:
            reason = f"{self.unrolled} keeps patches in another order than that of the image"
            return Split(found.prefix, None, f"{found.decided}; {reason}: no grid")
        return found

    def _split(self, tokens: int, grids: Grids) -> Split:
        if tokens in self.queries and self.given is None:
            learned = f"as many tokens as learned queries ({self.queries[tokens]})"
            return Split(0, None, f"{learned}: no patches", sure=grids.of(tokens) is None)
        if self.declared is None:
            return self._undeclared(tokens, grids)
        if tokens <= self.declared:
            return Split(tokens, None, f"all {tokens} are prefix tokens: {self.source}")
        behind = f"; behind the patches {self.suffix_source}" if self.suffix else ""
        for suffix in dict.fromkeys((self.suffix, 0)):
            patches = tokens - self.declared - suffix
            if patches > 0 and (grid := grids.of(patches)):
                return Split(self.declared, grid, self.source + (behind if suffix else ""), suffix=suffix)
        if self.given is None and (grid := grids.of(tokens)):  # CaiT, whose class token joins later
            return Split(0, grid, f"all {tokens} tokens form the grid {in_words([grid])}")
        patches = tokens - self.declared
        if not grids.flat and not grids.volumes and (grid := patch_grid(patches, grids.image_size)):
            return Split(self.declared, grid, f"{self.source}; the grid of the image's shape, guessed", False)
        for count in (patches, tokens) if self.given is None else (patches,):
            if volume := grids.volume_of(count):
                prefix = tokens - count
                what = f"{self.source}; " if prefix else ""
                return Split(
                    prefix, None, f"{what}{in_words([volume])} patches of a video: no grid of one image"
                )
        return Split(
            self.declared,
            None,
            f"{self.source}; {_no_grid(patches, grids)}",
            sure=self.given is not None or patches == 1,
        )

    def _undeclared(self, tokens: int, grids: Grids) -> Split:
        if grid := grids.of(tokens):
            return Split(0, grid, f"all {tokens} tokens form the grid {in_words([grid])}")
        if volume := grids.volume_of(tokens):
            return Split(0, None, f"{in_words([volume])} patches of a video: no grid of one image")
        shown = bool(grids.flat or grids.volumes)
        for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1):
            patches = tokens - prefix
            grid = grids.of(patches) if shown else patch_grid(patches, grids.image_size)
            if grid:
                decided = f"{tokens} tokens = {prefix} + the grid {in_words([grid])} (probed: not sure)"
                return Split(prefix, grid, decided, sure=False)
        return Split(0, None, f"no prefix token found; {_no_grid(tokens, grids)}", sure=tokens == 1)


def _learned(model: nn.Module, names: tuple[str, ...]) -> tuple[int, str]:
    """How many learned tokens have one of these names, and which they are."""
    found: dict[str, int] = {}
    most: dict[str, int] = {}
    for name, p in model.named_parameters():
        # Several of one kind (cls_token_0, cls_token_1) belong to as many branches (CrossViT).
        kind = re.sub(r"_\d+$", "", name.rpartition(".")[2])
        if kind in names and p.ndim >= 1 and p.shape[-1] > 0:
            found[name] = p.numel() // p.shape[-1]
            most[kind] = max(most.get(kind, 0), found[name])
    return sum(most.values()), ", ".join(f"{name} ({n})" for name, n in found.items())


def _no_grid(patches: int, grids: Grids) -> str:
    if patches == 1:
        return "one token"
    made = in_words([*grids.volumes, *grids.flat][-3:])
    if not made:
        return f"{patches} tokens form no grid of the image's shape"
    return f"{patches} tokens are none of the grids that the network made ({made}): a part of the patches, or none"


def patch_grid(patches: int, image_size: Grid | None) -> Grid | None:
    """The (rows, columns) of ``patches`` patches of one stride on the image; None if there is no such grid."""
    if image_size is None:
        return None
    height, width = image_size
    for stride in range(1, max(height, width) + 1):
        # A stem may round its output up or down at an edge that the stride does not divide.
        down = (height // stride, width // stride)
        up = (math.ceil(height / stride), math.ceil(width / stride))
        for grid in (down, up):
            if grid[0] * grid[1] == patches:
                return grid
    return None


def window_grid(tokens: int, module: nn.Module, grids: Grids) -> Grid | None:
    """The (rows, columns) of one window: the module's ``window_size`` if that fits, else as it was cut."""
    size = getattr(module, "window_size", None)
    if isinstance(size, tuple | list) and len(size) == 2 and size[0] * size[1] == tokens:
        return (int(size[0]), int(size[1]))
    if isinstance(size, int) and size * size == tokens:
        return (size, size)
    return grids.window_of(tokens)
