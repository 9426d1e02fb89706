"""The blocks before a lesion, computed once: their intact outputs are kept and handed out instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from deepvit.capturing import Anatomy
from deepvit.capturing.maps import relative_error
from deepvit.collapse.lesions.answers import answer_of
from deepvit.errors import UserError


class Prefix:
    """Keeps what leaves each block of one forward pass, and runs passes in which the first blocks give that.

    Only networks whose blocks are modules that run once a pass can do without them; and only where such a pass
    gives the intact answer (a later block may need more of an earlier one than its output, as value residual does).
    ``check`` finds that out.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self.model = anatomy.model
        self.names = list(anatomy.parts)
        # survey runs it once with this counted
        self.usable = all(part.called and part.runs == 1 for part in anatomy.parts.values())
        self._kept: dict[str, Any] = {}

    def place(self, block: str) -> int:
        """Where a block stands among the parts, in order of execution."""
        return self.names.index(block)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep every block's output of the pass inside."""
        self._kept.clear()
        handles = []
        for name in self.names if self.usable else ():
            module = self.model.get_submodule(name)
            handles.append(module.register_forward_hook(self._keep(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def instead(self, count: int) -> Iterator[None]:
        """Let the first ``count`` parts give what was kept, without computing it."""
        changed: list[tuple[nn.Module, Any]] = []
        for name in self.names[:count] if self.usable else ():
            module = self.model.get_submodule(name)
            changed.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = self._give(name)
        try:
            yield
        finally:
            for module, before in reversed(changed):
                if before is None:
                    del module.__dict__["forward"]
                else:
                    module.__dict__["forward"] = before

    def check(self, images: Tensor) -> None:
        """Switch itself off where a pass with kept blocks does not give the intact answer."""
        if not self.usable:
            return
        with torch.no_grad():
            with self.keeping():
                plain = answer_of(self.model(images)).clone()
            size = len(self.names)
            for count in sorted({1, size // 2, size - 1} - {0}):
                try:
                    with self.instead(count):
                        again = answer_of(self.model(images))
                except (UserError, RuntimeError, KeyError, AttributeError):
                    self.usable = False
                    break
                if not relative_error(again, plain) <= 1e-5:
                    self.usable = False
                    break
        self._kept.clear()

    def forget(self) -> None:
        """Free the memory."""
        self._kept.clear()

    def bytes_per_image(self, images: Tensor) -> int:
        """How much is kept of one image."""
        with torch.no_grad(), self.keeping():
            self.model(images)
        total = 0

        def count(value: Any) -> Any:
            nonlocal total
            if isinstance(value, Tensor):
                total += value.numel() * value.element_size()
            return value

        tree_map(count, list(self._kept.values()))
        self._kept.clear()
        return total // max(1, len(images))

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._kept[name] = tree_map(_copied, output)

        return hook

    def _give(self, name: str) -> Any:
        # A copy: what comes next may write into it.
        return lambda *_args, **_kwargs: tree_map(_copied, self._kept[name])


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
