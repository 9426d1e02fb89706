"""What a capture gives: tensors by block name, and beside each what its axes mean and how it was verified.

Legend of shapes: B images, H heads, N tokens (queries), M tokens (keys), D head width, C channels, W windows
per image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from torch import Tensor

# Axes of tokens: B images, N tokens or h, w rows and columns of them, C channels.
Form = Literal["BNC", "NBC", "BCN", "BhwC", "BChw"]


@dataclass(frozen=True)
class MapLayout:
    """What the axes of one attention map mean; ``seen.layout[key]`` describes ``seen.attention[key]``.

    A map is ``[B * windows, heads, queries, keys]``; with ``windows > 1`` the windows of one image lie next
    to each other (image-major). Prefix tokens (class, distillation, registers) come first, then patches in
    row-major order.
    """

    key: str  # the key in seen.attention
    block: str  # module name of the block; differs from key where one block has several attentions (MaxViT)
    module: str  # module name of the attention layer in which the map was made
    heads: int
    queries: int  # N, rows
    keys: int  # M, columns; differs from N in class attention (CaiT) and pooled keys (PVT, MViT)
    head_dim: int  # width of one head's values
    windows: int  # windows per image; 1 means that attention is global
    query_prefix: int  # how many of the rows are prefix tokens
    key_prefix: int  # how many of the columns are prefix tokens
    query_grid: (
        tuple[int, int] | None
    )  # (rows, columns) of the query patches, within one window if windows > 1
    key_grid: tuple[int, int] | None  # the same of the key patches; None where it could not be told
    source: str  # "scaled_dot_product_attention" | "softmax" | "multi_head_attention" | "reattention"
    measured: str  # in words: "softmax map", or "softmax map after linear, then multiplied by V"
    decided: str  # in words: how prefix tokens and grid were told, or why there is no grid
    sure: bool = True  # False where prefix tokens or grid are a guess, or nothing could be told

    @property
    def is_global_square(self) -> bool:
        """Whether the map is over all tokens of the image on both sides (and so comparable across blocks)."""
        return self.windows == 1 and self.queries == self.keys


@dataclass(frozen=True)
class TokenLayout:
    """What ``seen.tokens[block]`` ``[B, N, C]`` holds: the tokens as they leave the block."""

    block: str
    tokens: int  # N
    channels: int  # C
    prefix: int  # how many of the N are prefix tokens (they come first)
    grid: tuple[int, int] | None  # (rows, columns) of the patches; None where it could not be told
    side: Literal[
        "input", "output"
    ]  # where they are read: at the input or output of ``module``, which is the
    module: str  # block itself, or what runs next where the block is no called module
    form: Form  # the axes that the model keeps them in
    decided: str  # in words: how prefix tokens and grid were told, or why there is no grid
    suffix: int = 0  # how many of the N are no patches and come last (detection tokens of YOLOS)
    sure: bool = True  # False where prefix tokens or grid are a guess, or nothing could be told

    @property
    def read_from(self) -> str:
        """In words: ``output of blocks.0``."""
        return f"{self.side} of {self.module or 'the model'}"

    @property
    def patches(self) -> slice:
        """Which of the N tokens are patches: ``tokens[:, layout.patches]``."""
        return slice(self.prefix, self.tokens - self.suffix)


@dataclass(frozen=True)
class Check:
    """The rebuilding of one attention output from its captured map, compared with what the model computed."""

    key: str
    error: float  # largest absolute difference, divided by the largest absolute output
    tolerance: float  # depends on the dtype of the model's own output
    how: str  # in words: what was compared with what
    forwards: int = 1  # how many forward passes are in ``error`` (the largest over them)

    @property
    def passed(self) -> bool:
        """Whether the rebuilt output agrees (NaN does not)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Skipped:
    """A softmax or an attention that was seen and is not in the result, with the reason."""

    module: str
    shape: tuple[int, ...]
    reason: str


@dataclass(repr=False)
class Seen:
    """Everything captured. Tensors are those of the latest forward pass, detached, on the model's device.

    ``attention[key]`` is the matrix that multiplies V, ``[B, H, N, M]`` (``[B * W, H, n, m]`` in windows); it
    is the softmax map wherever the model does nothing to it in between, and ``softmax[key]`` holds the
    softmax map where the model does (Re-attention, talking heads). Half-precision models give float32 maps.

    A kind that goes to a consumer (``on_attention``, ``on_tokens``) is not kept: its dictionary stays empty,
    while layouts and checks are filled all the same.
    """

    attention: dict[str, Tensor] = field(default_factory=dict)
    softmax: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)  # [B, N, C], as they leave the block
    queries: dict[str, Tensor] = field(default_factory=dict)  # [B * W, H, N, D], as they meet the keys
    keys: dict[str, Tensor] = field(default_factory=dict)  # [B * W, H, M, D]
    values: dict[str, Tensor] = field(default_factory=dict)  # [B * W, H, M, Dv]
    layout: dict[str, MapLayout] = field(default_factory=dict)
    token_layout: dict[str, TokenLayout] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)  # names of the attention blocks in order of execution
    images: int = 0  # in the latest forward pass
    image_size: tuple[int, int] | None = None  # (height, width) in pixels
    forwards: int = 0
    notes: list[str] = field(default_factory=list)  # e.g. that the model was in training mode

    def __repr__(self) -> str:
        return "\n".join(self._lines())

    def _repr_html_(self) -> str:
        """The same three lines, and a table of the blocks."""
        told = "<br>".join(escape(line.strip()) for line in self._lines())
        kinds = {"attention": self.attention, "tokens": self.tokens}
        rows = [
            f"<tr><td>{escape(key)}</td><td>{kind}</td><td>{'×'.join(map(str, tensor.shape))}</td>"
            f"<td>{escape(self._meaning(kind, key))}</td></tr>"
            for kind, tensors in kinds.items()
            for key, tensor in tensors.items()
        ]
        head = "<tr><th>block</th><th>kind</th><th>shape</th><th>what it is</th></tr>"
        return f"<div>{told}<table>{head}{''.join(rows)}</table></div>"

    def _lines(self) -> list[str]:
        """What was captured, of which shapes, and how far it is verified: three lines."""
        if not self.forwards:
            return [
                "Seen: nothing yet",
                "  call the model inside `with capture(model) as seen:`",
                "  no checks",
            ]
        size = "" if self.image_size is None else " of {}×{}".format(*self.image_size)
        names = f" ({self.blocks[0]} to {self.blocks[-1]})" if len(self.blocks) > 1 else ""
        first = f"Seen: {_counted(len(self.blocks), 'attention block')}{names}, {_counted(self.images, 'image')}{size}"
        kept = [
            f"{name} {_shapes(tensors)}"
            for name in ("attention", "softmax", "tokens", "queries", "keys", "values")
            if (tensors := getattr(self, name))
        ]
        bad = [check.key for check in self.checks.values() if not check.passed]
        checked = f"{len(self.checks) - len(bad)} of {_counted(len(self.checks), 'check')} passed"
        if not self.checks:
            checked = "no checks"
        elif bad:
            checked += f" (not {', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''})"
        more = [
            _counted(len(each), word)
            for word, each in (("skipped", self.skipped), ("note", self.notes))
            if each
        ]
        return [first, f"  {', '.join(kept) or 'nothing kept'}", f"  {'; '.join([checked, *more])}"]

    def _meaning(self, kind: str, key: str) -> str:
        if kind == "tokens":
            layout = self.token_layout.get(key)
            return "" if layout is None else layout.read_from
        return self.layout[key].measured if key in self.layout else ""


def _counted(count: int, word: str) -> str:
    """``1 image``, ``2 images``; ``skipped`` has no plural."""
    return f"{count:,} {word}{'' if count == 1 or word == 'skipped' else 's'}"


def _shapes(tensors: dict[str, Tensor]) -> str:
    """``12 × [2, 3, 65, 65]``, or of several shapes the first and the last."""
    shapes = list(dict.fromkeys(tuple(tensor.shape) for tensor in tensors.values()))
    told = [str(list(shape)) for shape in (shapes if len(shapes) < 3 else (shapes[0], shapes[-1]))]
    return f"{len(tensors)} × {(' and ' if len(shapes) == 2 else ' to ').join(told)}"


# A consumer is called as soon as its tensor exists, in order of execution, and nothing is kept. The attention
# map may be held on to (it is not written again); tokens must be copied by whoever keeps them, the model may
# overwrite them.
AttentionConsumer = Callable[[str, Tensor, MapLayout], None]
TokenConsumer = Callable[[str, Tensor, TokenLayout], None]
