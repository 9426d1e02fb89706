"""Which modules are running: a stack kept by forward hooks, with the shapes that went in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepvit.capturing.spatial import Reads, first_tensor, merge

# What torch runs as one fused kernel in evaluation, and only while no hook is on it and no mode watches:
# hooks on these would send the model another way, with another rounding. ``fastpath`` wraps them instead.
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass
class Frame:
    """One running module."""

    name: str
    module: nn.Module
    shape: tuple[int, ...] | None  # of its first tensor argument
    saw_attention: bool = False  # directly, as the block of an attention
    began: int = 0  # when, in calls of torch functions (only counted by who needs it)
    reads: Reads = field(default_factory=dict)  # axes over channels, as its layers have read them


class Frames:
    """The stack of running modules of one model, and what happens when one starts or ends.

    ``started(frame, tensor)`` and ``ended(frame, output)`` are called with the first tensor argument (or
    None) and with the whole output.
    """

    def __init__(
        self,
        model: nn.Module,
        started: Callable[[Frame, Tensor | None], None],
        ended: Callable[[Frame, Any], None],
        leave: tuple[type[nn.Module], ...] = FUSED,
    ) -> None:
        self.model = model
        self.leave = leave  # modules that get no hooks, nor anything in them
        self.stack: list[Frame] = []
        self._started = started
        self._ended = ended
        self._handles: list[RemovableHandle] = []

    def install(self) -> None:
        """Put the hooks on."""
        left = {id(part) for m in self.model.modules() if isinstance(m, self.leave) for part in m.modules()}
        for name, module in self.model.named_modules():
            if id(module) in left:
                continue
            self._handles.append(
                module.register_forward_pre_hook(self._starter(name), with_kwargs=True),
            )
            # always_call: an exception inside the module must take its frame off as well.
            self._handles.append(module.register_forward_hook(self._ender(name), always_call=True))

    def remove(self) -> None:
        """Take every hook off and forget the stack."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.stack.clear()

    @contextmanager
    def running(self, name: str, module: nn.Module, tensor: Tensor | None) -> Iterator[Frame]:
        """The frame of a module that carries no hooks."""
        frame = self._push(name, module, tensor)
        try:
            yield frame
        finally:
            if frame in self.stack:
                del self.stack[self.stack.index(frame) :]
                self._hand_up(frame)

    def finish(self, frame: Frame, output: Any) -> None:
        """Tell that the module of a frame made by ``running`` has its output."""
        with torch._C.DisableTorchFunction():
            self._ended(frame, output)

    def _hand_up(self, frame: Frame) -> None:
        if self.stack:
            merge(self.stack[-1].reads, frame.reads)

    def _push(self, name: str, module: nn.Module, tensor: Tensor | None) -> Frame:
        frame = Frame(name, module, None if tensor is None else tuple(tensor.shape))
        with torch._C.DisableTorchFunction():
            self._started(frame, tensor)
        self.stack.append(frame)
        return frame

    def _starter(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def start(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._push(name, module, first_tensor((*args, *kwargs.values())))

        return start

    def _ender(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def end(module: nn.Module, args: Any, output: Any) -> None:
            for position in range(len(self.stack) - 1, -1, -1):
                frame = self.stack[position]
                if frame.module is module:
                    del self.stack[position:]
                    self._hand_up(frame)
                    if output is not None:
                        self.finish(frame, output)
                    return

        return end
