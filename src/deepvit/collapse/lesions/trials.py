"""One lesion of one network as something that can be run, and what its passes add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepvit import capturing as cap
from deepvit.capturing import Anatomy
from deepvit.collapse.lesions.answers import Reader, changed, distance
from deepvit.collapse.lesions.catalogue import LesionKind, NotHereError
from deepvit.collapse.lesions.effects import Effect
from deepvit.collapse.lesions.prefix import Prefix
from deepvit.collapse.lesions.score import Meter, Score
from deepvit.collapse.rows import Row


@dataclass
class Trial:
    """A lesion (``key`` of the catalogue, or "blocks") of some blocks, and its sums over images.

    ``kept``: how many parts of the network give their intact output. ``cost``: of a pass, in intact passes.
    """

    key: str
    blocks: list[int]
    lesions: list[cap.Lesion]
    kept: int
    cost: float
    distances: list[Tensor] = field(default_factory=list)
    changes: list[Tensor] = field(default_factory=list)
    rises: list[Tensor] = field(default_factory=list)
    meter: Meter | None = None

    def take(
        self,
        reader: Reader,
        intact: Tensor,
        lesioned: Tensor,
        answer: Tensor,
        targets: Any,
        score: Score | None,
    ) -> None:
        """Add a chunk: readings of the intact and the lesioned network, its bare answer, and targets."""
        self.distances.append(distance(reader, intact, lesioned).cpu())
        if (other := changed(reader, intact, lesioned)) is not None:
            self.changes.append(other.cpu())
        if score is None or targets is None:
            return
        if self.meter is None:
            self.meter = score.meter()
        self.meter.update(answer.float().cpu(), targets)
        if (rise := loss_rise(reader, intact, lesioned, targets)) is not None:
            self.rises.append(rise)

    def effect(self, score: Score | None) -> Effect:
        """What the sums come to; ``score`` None leaves out what rests on labels."""
        values = torch.cat(self.distances)
        spread = float(values.std()) if len(values) > 1 else 0.0
        effect = Effect(self.key, self.blocks, float(values.mean()), spread)
        if self.changes:
            effect.changed = float(torch.cat(self.changes).mean())
        if score is not None and self.meter is not None:
            effect.score = float(self.meter.compute()[score.key])
        if score is not None and self.rises:
            rises = torch.cat(self.rises)
            effect.loss = float(rises.mean())
            effect.loss_error = float(rises.std()) / len(rises) ** 0.5 if len(rises) > 1 else None
        return effect


def loss_rise(reader: Reader, intact: Tensor, lesioned: Tensor, targets: Any) -> Tensor | None:
    """Rise of each image's cross-entropy [B]; None without labels of these classes."""
    usual = reader.task == "classification" and isinstance(targets, Tensor) and targets.ndim == 1
    if (
        not usual
        or targets.is_floating_point()
        or int(targets.max()) >= intact.shape[1]
        or int(targets.min()) < 0
    ):
        return None
    index = targets.to(intact.device).long()[:, None]
    return (intact.gather(1, index) - lesioned.gather(1, index))[:, 0].double().cpu()


def trials_of(
    kind: LesionKind, anatomy: Anatomy, rows: Sequence[Row], prefix: Prefix
) -> tuple[list[Trial], list[list[str]]]:
    """A kind's lesions of every block that has it, and [block, reason] of what the network does not allow."""
    found, refused = [], []
    for number, row in enumerate(rows):
        try:
            lesions = kind.make(anatomy, rows, number)
        except NotHereError:
            continue
        reasons = [reason for lesion in lesions if (reason := cap.refusal(anatomy, lesion))]
        if reasons:
            refused.append([kind.key, reasons[0]])
            continue
        kept = _kept(kind, anatomy, rows, number, prefix)
        found.append(Trial(kind.key, [row.facts.index], lesions, kept, _cost(kind, prefix, kept, anatomy)))
    return found, refused


def trial_of_set(blocks: Sequence[int], rows: Sequence[Row], prefix: Prefix) -> Trial:
    """All of these blocks away at once."""
    names = {row.facts.index: row.block for row in rows if row.carries_tokens}
    lesions: list[cap.Lesion] = [cap.SkipBlock(names[block]) for block in blocks]
    kept = min(prefix.place(names[block]) for block in blocks) if prefix.usable else 0
    size = len(prefix.names)
    return Trial("blocks", list(blocks), lesions, kept, 0.05 + (size - kept - len(blocks)) / size)


def _kept(kind: LesionKind, anatomy: Anatomy, rows: Sequence[Row], number: int, prefix: Prefix) -> int:
    if not prefix.usable:
        return 0
    row = rows[number]
    place = prefix.place(row.block)
    if kind.reads and row.previous is not None:
        return min(place, prefix.place(rows[row.previous].block))
    if kind.after:
        tokens = anatomy.parts[row.block].tokens
        outside = tokens is None or tokens.side == "input" or tokens.module == row.block
        return place + 1 if outside or kind.key == "exit" else place
    return place


def _cost(kind: LesionKind, prefix: Prefix, kept: int, anatomy: Anatomy) -> float:
    size = len(prefix.names)
    rest = 0 if kind.key == "exit" and prefix.usable else size - kept
    return 0.05 + kind.cost * rest / size
