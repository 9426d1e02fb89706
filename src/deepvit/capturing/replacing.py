"""``intervene``: any readable network with a lesion, without its code; and the control that it is believed by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from deepvit.capturing.anatomy import Anatomy
from deepvit.capturing.lesions import DropAttention, EndAfter, Lesion, ReplaceMap, ReplacePatches, SkipBlock
from deepvit.capturing.maps import relative_error
from deepvit.capturing.passing import Passing
from deepvit.capturing.seen import Seen
from deepvit.capturing.substitute import Replacing, ReplacingWatch
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
    passing = Passing(anatomy)
    # Whole blocks are changed by their own hooks: to watch every module and function costs more than a small network.
    watched = any(isinstance(lesion, ReplaceMap | DropAttention) for lesion in lesions)
    with contextlib.ExitStack() as held:
        held.callback(passing.remove)
        expected = _put(anatomy, lesions, passing)
        if watched:
            recorder = Replacing(anatomy, lesions)
            watch = ReplacingWatch(recorder)
            held.callback(watch.follower.clear)
            held.callback(recorder.frames.remove)
            recorder.frames.install()
            held.enter_context(watch)
            yield recorder.seen
        else:
            yield Seen()
    if watched:
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
