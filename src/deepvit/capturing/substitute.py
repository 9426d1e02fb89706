"""The watching half of lesions: other maps put in place of a network's own, attentions left out of their sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepvit.capturing.anatomy import Anatomy
from deepvit.capturing.frames import Frame
from deepvit.capturing.layouts import Site
from deepvit.capturing.lesions import DropAttention, Lesion, ReplaceMap
from deepvit.capturing.maps import aside, exact
from deepvit.capturing.options import Options
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.removing import Removal
from deepvit.capturing.spatial import first_tensor
from deepvit.capturing.watch import Watch
from deepvit.errors import UserError


class Replacing(Recorder):
    """Asks for another map where a lesion says so, and follows the attentions that are to be dropped."""

    def __init__(self, anatomy: Anatomy, lesions: Sequence[Lesion]) -> None:
        options = Options(None, True, False, False, None, None, None, None, "error")
        super().__init__(anatomy.model, options, leave=())
        self.replacements = {x.key: x for x in lesions if isinstance(x, ReplaceMap)}
        self.dropped = {
            key for x in lesions if isinstance(x, DropAttention) for key in anatomy.keys_of(x.block)
        }
        self.read = {key for x in self.replacements.values() for key in x.reads}
        self.active = bool(self.replacements or self.dropped)
        keys = {*self.replacements, *self.dropped, *self.read}
        self.relevant = {anatomy.seen.layout[key].block for key in keys}
        self.removal = Removal(self.frames)
        self.result: Tensor | None = None
        self._earlier: dict[str, Tensor] = {}
        self._done: set[str] = set()

    def wants_map(self, site: Site) -> bool:
        """Only maps that are replaced or read."""
        return site.key in self.replacements or site.key in self.read

    def record(self, site: Site, *, attention: Tensor, check: Any, **_: Any) -> Tensor | None:
        """Verify the map, hand it to the lesion, and return what that gives."""
        self.note(check)
        matrix, instead = exact(attention), None
        if (lesion := self.replacements.get(site.key)) is not None:
            with aside(attention):
                by = lesion.by
                instead = by if isinstance(by, Tensor) else by(matrix, dict(self._earlier))
                try:
                    matrix = instead.to(matrix.device, matrix.dtype).expand(matrix.shape)
                except RuntimeError:
                    raise UserError(
                        f"{site.key}: its map {tuple(matrix.shape)} was replaced by {tuple(instead.shape)}"
                    ) from None
            self._done.add(site.key)
        if site.key in self.read:
            self._earlier[site.key] = matrix
        if site.key in self.dropped:
            self.record_layout(site)
        return None if instead is None else matrix

    def record_layout(self, site: Site, *_: Any) -> None:
        """An attention whose map is not asked for: it is to be dropped."""
        if site.key in self.dropped and self.result is not None:
            self._done.add(site.key)
            self.removal.follow(site, self.result)

    def close(self) -> None:
        """Refuse if a lesion did not come about."""
        for branch in self.removal.branches:
            if branch.joined:
                raise UserError(
                    f"{branch.key}: its attention cannot be dropped: its output is joined with something else "
                    f"({branch.joined}) before it is added to the stream"
                )
            if not branch.removed:
                raise UserError(
                    f"{branch.key}: its attention cannot be dropped: no sum with the stream was found"
                )
        if missed := {*self.replacements, *self.dropped} - self._done:
            raise UserError(f"{', '.join(sorted(missed))}: no such attention ran inside the with block")

    def _wanted(self, block: str) -> bool:
        return block in self.relevant

    def _started(self, frame: Frame, tensor: Tensor | None) -> None:
        self.removal.begin_module(frame)
        forwards = self.seen.forwards
        super()._started(frame, tensor)
        if self.seen.forwards != forwards:
            self._earlier.clear()
            self.removal.begin_pass()


class ReplacingWatch(Watch):
    """Watches as for capture, and leaves dropped branches out of their sums."""

    recorder: Replacing

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if not recorder.active or not recorder.frames.stack:
            return func(*args, **kwargs)
        if recorder.dropped:
            with torch._C.DisableTorchFunction():
                instead = recorder.removal.instead(func, args, kwargs)
            if instead is not None:
                return instead
        return super().__torch_function__(func, types, args, kwargs)

    def _look(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        recorder = self.recorder
        recorder.result = first_tensor(out)
        if recorder.dropped:
            recorder.removal.look(func, args, kwargs, out)
        return super()._look(func, args, kwargs, out)
