"""What can be done to which block of a network: found by two forward passes of one image."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from deepvit.capturing.functions import name_of, tensors_in
from deepvit.capturing.marks import Marks
from deepvit.capturing.seen import Seen, TokenLayout
from deepvit.capturing.session import capture
from deepvit.capturing.spatial import first_tensor
from deepvit.errors import UserError

_ADD = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_", "addcmul"})


@dataclass
class Part:
    """One block, or another part of a row of blocks: how its input gets past it.

    ``stream``: position or name of the argument that it passes on. ``bare``: it returns one tensor and
    nothing else. ``start``: the first module that runs in a block without a forward of its own. ``why_not``:
    the reason why it cannot be skipped, or nothing.
    """

    name: str
    called: bool
    tokens: TokenLayout | None = None
    head: bool = False  # class attention behind the patch blocks
    stream: int | str | None = None
    bare: bool = False
    start: str = ""
    why_not: str = ""
    runs: int = 0


@dataclass(frozen=True)
class Anatomy:
    """A network, its attention blocks in order of execution, and what can be done to each.

    ``seen`` has the layouts of maps and tokens (of one image; no map was formed). ``parts`` holds the blocks,
    and what else stands in a row with them (convolutional blocks), in order of execution.
    """

    model: nn.Module
    seen: Seen
    parts: dict[str, Part] = field(default_factory=dict)

    @property
    def blocks(self) -> list[str]:
        """Names of the attention blocks in order of execution."""
        return list(self.seen.blocks)

    @property
    def keys(self) -> list[str]:
        """Keys of the maps in order of execution."""
        return list(self.seen.layout)

    def keys_of(self, block: str) -> list[str]:
        """The keys of a block's maps; a key stands for itself."""
        return [key for key, layout in self.seen.layout.items() if block in (key, layout.block)]

    def after(self, block: str) -> list[Part]:
        """The parts that are skipped when the network ends after ``block``."""
        order = list(self.parts)
        later = [self.parts[name] for name in order[order.index(block) + 1 :]]
        inside = tuple(f"{name}." for name in (block,))
        return [p for p in later if not p.name.startswith(inside) and (not p.head or self.parts[block].head)]


def survey(model: nn.Module, images: Tensor) -> Anatomy:
    """Find out what can be done to a model's blocks.

    ``images`` [B, 3, h, w], one is enough, of the size that will be used. Raises ``UserError`` as
    :func:`deepvit.capture` does, and for a model in training mode, whose passes differ.
    """
    if any(module.training for module in model.modules()):
        raise UserError(
            "lesions compare forward passes: put the model in evaluation mode first (model.eval())"
        )
    with torch.no_grad(), capture(model, attention=False, on_tokens=lambda *_: None) as seen:
        model(images)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    tracer = _Tracer(model, seen)
    with torch.no_grad(), tracer.hooked(), tracer:
        model(images)
    return Anatomy(model, seen, tracer.finish())


class _Tracer(TorchFunctionMode):
    """Watches how blocks are called, and whether what they return is added to their own input."""

    def __init__(self, model: nn.Module, seen: Seen) -> None:
        super().__init__()
        self.model, self.seen = model, seen
        self.modules = dict(model.named_modules())
        self.parts: dict[str, Part] = {}
        self._order: list[str] = []
        self._inputs: dict[str, weakref.ref[Tensor]] = {}
        self._made_of: Marks[frozenset[str]] = Marks()
        self._handles: list[RemovableHandle] = []
        for block in seen.blocks:
            called = not isinstance(self.modules[block], nn.ModuleList | nn.ModuleDict)
            layouts = [layout for layout in seen.layout.values() if layout.block == block]
            head = bool(layouts) and all(x.queries <= x.query_prefix and x.keys > x.queries for x in layouts)
            self.parts[block] = Part(block, called, seen.token_layout.get(block), head)
        rows = {block.rpartition(".")[0] for block in seen.blocks}
        for row in rows:
            for name, _ in self.modules[row].named_children():
                full = f"{row}.{name}" if row else name
                blocks_in_it = any(b == full or b.startswith(full + ".") for b in seen.blocks)
                if row and not blocks_in_it and isinstance(self.modules[row], nn.Sequential | nn.ModuleList):
                    self.parts[full] = Part(full, True)

    def hooked(self) -> _Hooks:
        """Hooks on while the context is open."""
        handles = []
        for name, part in self.parts.items():
            if part.called:
                module = self.modules[name]
                handles.append(module.register_forward_pre_hook(self._before(part), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after(part), with_kwargs=True))
                continue
            for inner, module in self.modules.items():
                if inner.startswith(name + "."):
                    handles.append(module.register_forward_pre_hook(self._first(part, inner)))
        return _Hooks(handles)

    def finish(self) -> dict[str, Part]:
        """The parts in order of execution, with the reasons why some cannot be skipped."""
        before: Part | None = None
        for name in self._order:
            part = self.parts[name]
            if not part.called:
                where = part.tokens
                if where is None:
                    part.why_not = part.why_not or "its tokens cannot be told from what it returns"
                elif before is not None and not before.called and before.tokens is not None:
                    row = name.rpartition(".")[0]
                    read = before.tokens
                    joined = read.side == "input" and read.module.startswith(name + ".")
                    if before.name.rpartition(".")[0] == row and not joined:
                        part.why_not = part.why_not or "what enters it is not known"
            before = part
        return {name: self.parts[name] for name in self._order}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operands = list(tensors_in(args, kwargs))
        made_of = frozenset[str]().union(*(self._made_of.of(x) or () for x in operands))
        if made_of:
            if name_of(func) in _ADD:
                for name in made_of:
                    own = self._inputs[name]()
                    if own is not None and any(x is own for x in operands):
                        self.parts[name].why_not = "it is a branch, which is added to its input outside of it"
            for tensor in tensors_in((out,), {}):
                self._made_of.put(tensor, made_of)
        return out

    def _before(self, part: Part) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._runs(part)
            tensor = first_tensor((*args, *kwargs.values()))
            if tensor is not None:
                self._inputs[part.name] = weakref.ref(tensor)

        return hook

    def _first(self, part: Part, inner: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any) -> None:
            if not part.start:
                part.start = inner
                self._runs(part)

        return hook

    def _runs(self, part: Part) -> None:
        part.runs += 1
        if part.name not in self._order:
            self._order.append(part.name)

    def _after(self, part: Part) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            out = first_tensor(output)
            if out is None:
                part.why_not = "it returns no tensor"
                return
            part.bare = isinstance(output, Tensor)
            named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
            given = [(place, x) for place, x in named if isinstance(x, Tensor)]
            same = [place for place, x in given if x.shape == out.shape]
            if not same:
                shapes = ", ".join(str(tuple(x.shape)) for _, x in given) or "no tensor"
                part.why_not = f"it returns {tuple(out.shape)} and gets {shapes}"
            elif len(same) > 1 and same[0] != given[0][0]:
                part.why_not = "which of its inputs it passes on cannot be told"
            else:
                part.stream = same[0]
                if part.name in self._inputs:
                    self._made_of.put(out, frozenset({part.name}))

        return hook


class _Hooks:
    """Hooks that are taken off when the context ends."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self.handles = handles

    def __enter__(self) -> None:
        """They are on already."""

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
