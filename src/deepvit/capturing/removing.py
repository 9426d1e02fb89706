"""Follows the output of an attention to where it is added to the stream, and leaves it out of that sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing.frames import Frame, Frames
from deepvit.capturing.functions import VALUE_KEEPING, name_of, tensors_in
from deepvit.capturing.layouts import Site
from deepvit.capturing.marks import Marks

_ADD = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_"})
_JOIN = frozenset(
    {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "where", "__setitem__"}
)


@dataclass(eq=False)
class Branch:
    """One attention under way to the stream."""

    key: str
    owner: Frame
    inline: bool  # it is computed in the block's own forward
    joined: str = ""  # with what it was joined before it was added
    removed: bool = False


class Removal:
    """The attentions that are to add nothing.

    A tensor that was made of an attention's output is followed by identity. The first sum with an activation
    of the same shape that was not made of it, and that was there before the attention's module began or is
    made after it has ended, is the one with the stream: it gives the other operand. Sums inside the module
    with what it computed itself (a convolution of V, a residual of pooled queries) are part of the attention.
    """

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.branches: list[Branch] = []
        self._made_of: Marks[frozenset[Branch]] = Marks()
        self._age: Marks[int] = Marks()
        self._now = 0

    def begin_pass(self) -> None:
        """Another forward pass begins."""
        self._made_of.clear()
        self._age.clear()

    def begin_module(self, frame: Frame) -> None:
        """A module starts: what is made from now on is younger than it."""
        frame.began = self._now

    def follow(self, site: Site, out: Tensor) -> None:
        """The attention of ``site`` has its output."""
        branch = Branch(site.key, site.owner, inline=site.owner.name == site.block)
        self.branches.append(branch)
        self._made_of.put(out, frozenset({branch}))

    def instead(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """What a sum gives without the attention's branch; None for every other call."""
        name = name_of(func)
        if not self._made_of or name not in {*_ADD, "addcmul"}:
            return None
        operands = list(tensors_in(args, kwargs))
        ours = [x for x in operands if self._made_of.of(x)]
        others = [x for x in operands if not self._made_of.of(x) and not isinstance(x, nn.Parameter)]
        if not ours or not others or (name == "addcmul" and others[0] is not operands[0]):
            return None
        stream = others[0]
        largest = max(ours, key=Tensor.numel)
        if stream.shape != largest.shape:
            return None
        branches = frozenset[Branch]().union(*(self._made_of.of(x) or () for x in ours))
        if not all(self._is_stream(stream, branch) for branch in branches):
            return None
        for branch in branches:
            branch.removed = True
        in_place = name in ("__iadd__", "add_")
        if in_place and args[0] is not stream:
            with torch.no_grad():
                args[0].copy_(stream)
            self._made_of.drop(args[0])
            return args[0]  # type: ignore[no-any-return]
        return stream if in_place else stream.to(torch.promote_types(stream.dtype, largest.dtype))

    def look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Follow what any other function makes."""
        self._now += 1
        made = list(tensors_in((out,), {}))
        name = name_of(func)
        # A view of the stream is as old as the stream.
        source = args[0] if args and name in VALUE_KEEPING else None
        age = self._now if source is None else self._age.of(source)
        for tensor in made:
            if age is not None:
                self._age.put(tensor, age)
        if not self._made_of:
            return
        operands = list(tensors_in(args, kwargs))
        branches = frozenset[Branch]().union(*(self._made_of.of(x) or () for x in operands))
        if not branches:
            return
        if name == "__setitem__":
            made = [args[0]]
        if name in _JOIN and any(not self._made_of.of(x) and x.is_floating_point() for x in operands):
            for branch in branches:
                branch.joined = name.strip("_")
        elif name in _ADD and not isinstance(operands[-1], nn.Parameter):
            rest = [x for x in operands if not self._made_of.of(x)]
            for branch in branches:
                if branch.inline and any(x.shape == operands[0].shape for x in rest):
                    branch.joined = "another branch"
        for tensor in made:
            self._made_of.put(tensor, branches)

    def _is_stream(self, other: Tensor, branch: Branch) -> bool:
        age = self._age.of(other)
        if branch.owner not in self.frames.stack:
            return True
        return age is None or age <= branch.owner.began
