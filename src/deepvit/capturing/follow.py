"""Follows an eager attention from scores to output: queries times keys, softmax, what follows, times V.

The tensors themselves are followed, by identity, through whatever torch functions the model applies. Nothing
is assumed of the module that does it. Two axes are followed with them: which is over queries (rows) and which
over keys (columns).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing.functions import (
    EINSUM,
    VALUE_KEEPING,
    axes_after,
    name_of,
    tensors_in,
    writes_in_place,
)
from deepvit.capturing.marks import Marks


@dataclass(frozen=True)
class Scores:
    """A product of two activations that may turn out to be queries times keys."""

    left: Tensor  # [..., rows, D]
    right: Tensor  # [..., columns, D]
    rows: int  # which axis of the followed tensor is over left's tokens, counted from the back (negative)
    columns: int


@dataclass(frozen=True)
class Map:
    """A softmax map on its way to V."""

    softmax: Tensor  # [..., N, M], as softmax made it, rows over queries
    queries: Tensor
    keys: Tensor
    rows: int
    columns: int
    steps: tuple[str, ...] = field(default=())  # what the model did to it, in order
    dropped: bool = False  # dropout was active in between

    @property
    def changed(self) -> bool:
        """Whether what multiplies V has other values than the softmax map (dropout aside)."""
        return any(step not in VALUE_KEEPING and step != "dropout" for step in self.steps)


@dataclass(frozen=True)
class Product:
    """A map has met its V: ``matrix @ values == out`` is what the model computed, on axes put in order."""

    map: Map
    matrix: Tensor  # [..., N, M]
    values: Tensor  # [..., M, Dv]
    out: Tensor  # [..., N, Dv]
    restore: Callable[[Tensor], Tensor]  # from the axes of ``out`` to those that the model gets


class Follower:
    """Holds what is known of the tensors under way, for as long as those tensors live."""

    def __init__(self) -> None:
        self._known: Marks[Scores | Map] = Marks()

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def of(self, value: object) -> Scores | Map | None:
        """What is known of a tensor."""
        return self._known.of(value)

    def remember(self, tensor: Tensor, what: Scores | Map) -> None:
        """Follow ``tensor`` from here on."""
        self._known.put(tensor, what)

    def before(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Save a softmax map that ``func`` is about to overwrite."""
        if not self._known or not args or not writes_in_place(func, kwargs):
            return
        known = self.of(args[0])
        if isinstance(known, Map):
            if known.softmax.data_ptr() == args[0].data_ptr():
                known = replace(known, softmax=known.softmax.clone())
            if getattr(func, "__name__", "") == "__setitem__":  # has no result by which it could be followed
                known = replace(known, steps=(*known.steps, "setitem"))
            self.remember(args[0], known)

    def softmax(self, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> str | None:
        """Note a softmax; returns why it is not that of an attention, or None if it may be."""
        source = args[0] if args else kwargs.get("input")
        known = self.of(source)
        if not isinstance(known, Scores):
            return "softmax of something that is no product of queries and keys"
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if not isinstance(dim, int):
            return "softmax without an axis"
        axis = dim - out.ndim if dim >= 0 else dim
        if axis not in (known.rows, known.columns):
            return f"softmax over axis {dim}, which is over neither queries nor keys"
        queries, keys, rows = known.left, known.right, known.rows
        if axis == known.rows:  # the keys came first in the product
            queries, keys, rows = known.right, known.left, known.columns
        softmax = out.detach().movedim((rows, axis), (-2, -1))
        self.remember(out, Map(softmax, queries, keys, rows, axis))
        return None

    def multiply(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> Product | None:
        """Note a product of two tensors; a map that meets its V comes back as a ``Product``."""
        if func in EINSUM:
            return self._einsum(args, out)
        left, right = (*args, *kwargs.values())[:2]
        if func is Tensor.__rmatmul__:
            left, right = right, left
        if not isinstance(left, Tensor) or not isinstance(right, Tensor) or left.ndim < 2 or right.ndim < 2:
            return None
        for known, mine, swap in ((self.of(left), left, False), (self.of(right), right, True)):
            if not isinstance(known, Map):
                continue
            other = left if swap else right
            if isinstance(other, nn.Parameter):
                self.follow(func, args, kwargs, out)
                return None
            contracted, kept = (-2, -1) if swap else (-1, -2)
            if (known.columns, known.rows) != (contracted, kept):
                return None
            matrix, values, result = (mine.mT, other.mT, out.mT) if swap else (mine, other, out)
            return Product(known, matrix, values, result, _transposed if swap else _as_it_is)
        if not isinstance(left, nn.Parameter) and not isinstance(right, nn.Parameter):
            self.remember(out, Scores(left.detach(), right.detach().mT, -2, -1))
        return None

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        """Carry what is known of the arguments over to the result of any other function."""
        if not isinstance(out, Tensor):
            return
        for source in tensors_in(args, kwargs):
            known = self.of(source)
            if known is None:
                continue
            axes = axes_after(func, args, kwargs, source, out, known.rows, known.columns)
            if axes is None:
                continue
            moved: Scores | Map = replace(known, rows=axes[0], columns=axes[1])
            if isinstance(moved, Map):
                name = name_of(func)
                if "dropout" not in name:
                    moved = replace(moved, steps=(*moved.steps, name))
                elif source.data_ptr() != out.data_ptr() and not torch.equal(source, out):  # it was active
                    moved = replace(moved, steps=(*moved.steps, "dropout"), dropped=True)
            self.remember(out, moved)
            return

    def _einsum(self, args: tuple[Any, ...], out: Tensor) -> Product | None:
        equation = args[0] if args and isinstance(args[0], str) else ""
        operands = args[1] if len(args) == 2 and isinstance(args[1], list | tuple) else args[1:]
        if "->" not in equation or "." in equation or len(operands) != 2:
            self.follow(torch.einsum, args, {}, out)
            return None
        inputs, result = equation.replace(" ", "").split("->")
        letters = inputs.split(",")
        for mine, other in ((0, 1), (1, 0)):
            known = self.of(operands[mine])
            if isinstance(known, Scores) and isinstance(operands[other], nn.Parameter):
                row, column = letters[mine][known.rows], letters[mine][known.columns]
                if row in result and column in result:  # heads mixed before the softmax
                    rows, columns = result.index(row) - len(result), result.index(column) - len(result)
                    self.remember(out, replace(known, rows=rows, columns=columns))
                return None
            if not isinstance(known, Map):
                continue
            row, column = letters[mine][known.rows], letters[mine][known.columns]
            if isinstance(operands[other], nn.Parameter) or column not in letters[other] or column in result:
                if row in result and column in result:
                    rows, columns = result.index(row) - len(result), result.index(column) - len(result)
                    steps = (*known.steps, "einsum")
                    self.remember(out, replace(known, rows=rows, columns=columns, steps=steps))
                return None
            width = [x for x in letters[other] if x in result and x not in letters[mine]]
            if row not in result or row in letters[other] or len(width) != 1:
                return None
            lead = [x for x in letters[mine] if x not in (row, column)]
            matrix = _arrange(operands[mine], letters[mine], [*lead, row, column])
            values = _arrange(operands[other], letters[other], [*lead, column, width[0]])
            order = [*lead, row, width[0]]
            if sorted(order) != sorted(result):
                return None
            back = [order.index(letter) for letter in result]
            arranged = _arrange(out, result, order)
            return Product(known, matrix, values, arranged, partial(_permuted, back))
        self._einsum_scores(letters, result, operands, out)
        return None

    def _einsum_scores(self, letters: list[str], result: str, operands: Any, out: Tensor) -> None:
        left, right = operands
        summed = [x for x in letters[0] if x in letters[1] and x not in result]
        rows = [x for x in letters[0] if x in result and x not in letters[1]]
        columns = [x for x in letters[1] if x in result and x not in letters[0]]
        if (len(summed), len(rows), len(columns)) != (1, 1, 1):
            return
        if isinstance(left, nn.Parameter) or isinstance(right, nn.Parameter):
            return
        lead = [x for x in result if x not in (rows[0], columns[0])]
        self.remember(
            out,
            Scores(
                _arrange(left.detach(), letters[0], [*lead, rows[0], summed[0]]),
                _arrange(right.detach(), letters[1], [*lead, columns[0], summed[0]]),
                result.index(rows[0]) - len(result),
                result.index(columns[0]) - len(result),
            ),
        )


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _permuted(order: list[int], t: Tensor) -> Tensor:
    return t.permute(order)


def _transposed(t: Tensor) -> Tensor:
    return t.mT


def _arrange(tensor: Tensor, letters: str, order: list[str]) -> Tensor:
    """Put the axes named by ``letters`` into ``order``; an axis that the tensor lacks gets size 1."""
    present = [x for x in order if x in letters]
    tensor = tensor.permute([letters.index(x) for x in present])
    for position, letter in enumerate(order):
        if letter not in letters:
            tensor = tensor.unsqueeze(position)
    return tensor
