"""``intervene``: any readable network with a lesion, without its code; and the control that it is believed by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepvit.capturing.anatomy import Anatomy
from deepvit.capturing.frames import Frame
from deepvit.capturing.layouts import Site
from deepvit.capturing.lesions import DropAttention, EndAfter, Lesion, ReplaceMap, ReplacePatches, SkipBlock
from deepvit.capturing.maps import aside, exact, relative_error
from deepvit.capturing.options import Options
from deepvit.capturing.passing import Passing
from deepvit.capturing.recorder import Recorder
from deepvit.capturing.removing import Removal
from deepvit.capturing.seen import Seen
from deepvit.capturing.spatial import first_tensor
from deepvit.capturing.watch import Watch
from deepvit.errors import UserError

# By how much the output may move, as a share of its largest entry, when every map and every patch is replaced
# by itself: rounding of one block, handed through all others.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}


@contextmanager
def intervene(anatomy: Anatomy, *lesions: Lesion) -> Iterator[Seen]:
    """Run a network with lesions: ``with intervene(survey(model, images[:1]), SkipBlock("blocks.3")): ...``.

    Every forward pass of ``anatomy.model`` inside has all of the lesions; afterwards the model is as before,
    after an exception too. Nothing of the model's code is needed. Run it under ``torch.no_grad()``: gradients
    do not go through replaced maps.

    Args:
        anatomy: of :func:`survey`, with images of the same size.
        lesions: what is done; see :mod:`deepvit.capturing.lesions`. Several at once act together, except
            that one map can be replaced only once, and not in an attention that is dropped.

    Yields:
        ``Seen`` with the checks of the maps that were replaced (each is verified before it is replaced).

    Raises:
        UserError: a lesion that this network does not allow (with the reason), before anything runs; one that
            no forward pass reached, or whose sum was not found, at the end.
    """
    for lesion in lesions:
        if reason := refusal(anatomy, lesion):
            raise UserError(reason)
    _agree(lesions)
    recorder = _Replacing(anatomy, lesions)
    passing = Passing(anatomy)
    watch = _ReplacingWatch(recorder)
    try:
        expected = _put(anatomy, lesions, passing)
        recorder.frames.install()
        with watch:
            yield recorder.seen
    finally:
        recorder.frames.remove()
        passing.remove()
        watch.follower.clear()
    recorder.close()
    if missed := expected - passing.reached:
        raise UserError(f"{', '.join(sorted(missed))}: the model did not run it inside the with block")


def refusal(anatomy: Anatomy, lesion: Lesion) -> str:
    """Why a lesion cannot be done to this network, in one line that names the block; nothing if it can."""
    if isinstance(lesion, ReplaceMap):
        missing = [key for key in (lesion.key, *lesion.reads) if key not in anatomy.seen.layout]
        return (
            f"{missing[0]}: the model has no such map; its maps are {_some(anatomy.keys)}" if missing else ""
        )
    block = lesion.block
    if isinstance(lesion, DropAttention):
        known = anatomy.keys_of(block)
        return "" if known else f"{block}: the model has no such attention; it has {_some(anatomy.keys)}"
    part = anatomy.parts.get(block)
    if part is None or block not in anatomy.blocks:
        return f"{block}: the model has no such attention block; its blocks are {_some(anatomy.blocks)}"
    if isinstance(lesion, SkipBlock):
        return f"{block} cannot be skipped: {part.why_not}" if part.why_not else ""
    if isinstance(lesion, ReplacePatches):
        layout = part.tokens
        if layout is None:
            skipped = [s.reason for s in anatomy.seen.skipped if s.module == block]
            return f"{block}: its patches cannot be replaced: {(skipped or ['its tokens were not read'])[0]}"
        if layout.patches.stop <= layout.patches.start:
            return f"{block}: no patch leaves it"
        if "branch" in part.why_not or (not part.called and part.why_not):
            return f"{block}: its patches cannot be replaced: {part.why_not}"
        return ""
    later = next((p for p in anatomy.after(block) if p.why_not), None)
    return (
        f"the network cannot end after {block}: {later.name} cannot be skipped: {later.why_not}"
        if later
        else ""
    )


def control(anatomy: Anatomy, images: Tensor) -> float:
    """Replace every map and all patches by themselves; raises ``UserError`` where that changes the output.

    Returns the largest difference of any output, as a share of its largest entry. Blocks that refuse are left
    out. Run before any number of a lesion is believed.
    """
    model = anatomy.model
    maps: list[Lesion] = [ReplaceMap(key, lambda own, _: own) for key in anatomy.keys]
    patches: list[Lesion] = [ReplacePatches(block, lambda own: own) for block in anatomy.blocks]
    lesions = [lesion for lesion in (*maps, *patches) if not refusal(anatomy, lesion)]
    with torch.no_grad():
        plain = _tensors(model(images))
        error = _difference(anatomy, lesions, images, plain)
        allowed = _ROUNDING.get(plain[0].dtype, 2e-4)
        if error <= allowed:
            return error
        for lesion in lesions:
            if not _difference(anatomy, [lesion], images, plain) <= allowed:
                what = (
                    f"the map of {lesion.key}"
                    if isinstance(lesion, ReplaceMap)
                    else f"patches after {lesion.block}"
                )
                raise UserError(
                    f"{type(model).__name__}: {what} replaced by itself changes the output (relative difference "
                    f"{error:.2g}, allowed {allowed:.0e}): lesions of this model cannot be believed"
                )
    raise UserError(
        f"{type(model).__name__}: all maps and patches replaced by themselves change the output (relative "
        f"difference {error:.2g}, allowed {allowed:.0e}): lesions of this model cannot be believed"
    )


class _Replacing(Recorder):
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


class _ReplacingWatch(Watch):
    """Watches as for capture, and leaves dropped branches out of their sums."""

    recorder: _Replacing

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


def _put(anatomy: Anatomy, lesions: Sequence[Lesion], passing: Passing) -> set[str]:
    """Put the lesions of whole blocks on; returns the labels of what has to be reached."""
    skipped: dict[str, Any] = {}
    expected: set[str] = set()
    for lesion in lesions:
        if isinstance(lesion, SkipBlock):
            skipped[lesion.block] = anatomy.parts[lesion.block]
        elif isinstance(lesion, EndAfter):
            skipped |= {part.name: part for part in anatomy.after(lesion.block)}
    for name, part in skipped.items():
        passing.skip(part)
        expected.add(f"skip {name}")
    for lesion in lesions:
        if isinstance(lesion, ReplacePatches):
            passing.patches(anatomy.parts[lesion.block], lesion.by)
            expected.add(f"patches of {lesion.block}")
    return expected


def _agree(lesions: Sequence[Lesion]) -> None:
    keys = [lesion.key for lesion in lesions if isinstance(lesion, ReplaceMap)]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise UserError(f"{min(twice)}: its map is replaced twice")


def _difference(anatomy: Anatomy, lesions: Sequence[Lesion], images: Tensor, plain: list[Tensor]) -> float:
    with intervene(anatomy, *lesions):
        again = _tensors(anatomy.model(images))
    return max(relative_error(a, b) for a, b in zip(again, plain, strict=True))


def _tensors(output: Any) -> list[Tensor]:
    """All floating tensors of an output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = list(output.values())
    return [t for item in output for t in _tensors(item)] if isinstance(output, tuple | list) else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {names[-1]}" if len(names) > 3 else "")
