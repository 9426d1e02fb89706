"""The structure of lesions: what was done to which blocks, and what it did to the answer.

Everything is plain: ``asdict`` gives JSON values. Blocks are numbers of the report's blocks (``BlockFacts.index``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Effect:
    """What one lesion of some blocks did, against the intact network on the same images.

    ``lesion`` is a key of ``catalogue.LESIONS``. ``value``: mean over images of the distance of the answers
    (``Lesions.measure``), ``spread`` its standard deviation over images. ``changed``: share of images whose first
    answer is another (of pixels, where the output is dense); ``None`` without classes. ``score``: accuracy or mIoU
    with the lesion; ``loss`` and ``loss_error``: mean over images of the rise of the cross-entropy, and its standard
    error; ``None`` without labels.
    """

    lesion: str
    blocks: list[int]
    value: float
    spread: float
    changed: float | None = None
    score: float | None = None
    loss: float | None = None
    loss_error: float | None = None

    def error(self, images: int) -> float:
        """Standard error of ``value``."""
        return self.spread / math.sqrt(max(1, images))


@dataclass
class Lesions:
    """All lesions of one network.

    ``measure``: "kl" (KL of the intact network's class probabilities to the lesioned ones', in nats), "kl_per_pixel"
    (its mean over the places of a dense output) or "cosine" (1 − cosine of the pooled output, where there are no
    classes). ``task``: "classification", "dense" or "features". ``told_apart``: how much the answer says about the
    image, on the same scale: nats between the image's answer and the mean answer, or 1 − cosine of two images.
    ``score_name`` and ``score``: "accuracy" or what the task calls it, and that of the intact network; empty without
    labels. ``control``: largest relative change of the output when all maps and patches are replaced by themselves.
    ``failed``: why no number is believed, empty if they are. ``refused``: [what, reason] of single lesions.
    ``left_out``: what the time did not allow, in keys of ``catalogue.LESIONS``. ``available``: images that there were.
    """

    measure: str = "kl"
    task: str = "classification"
    images: int = 0
    available: int = 0
    told_apart: float = 0.0
    score_name: str = ""
    score: float | None = None
    control: float | None = None
    failed: str = ""
    effects: list[Effect] = field(default_factory=list)
    refused: list[list[str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    budget: str = "auto"
    seconds: float = 0.0
    prefix_kept: bool = True

    def of(self, lesion: str, blocks: int | Sequence[int]) -> Effect | None:
        """The effect of one lesion of these blocks; ``None`` where it was not measured."""
        wanted = [blocks] if isinstance(blocks, int) else sorted(blocks)
        return next((e for e in self.effects if e.lesion == lesion and e.blocks == wanted), None)

    def single(self, lesion: str) -> dict[int, Effect]:
        """The effects of one lesion on one block at a time, by block."""
        return {e.blocks[0]: e for e in self.effects if e.lesion == lesion and len(e.blocks) == 1}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Lesions:
        """The inverse of ``asdict``; entries that this version does not know are left out."""
        kept = _known(cls, plain)
        return cls(**{**kept, "effects": [Effect(**_known(Effect, entry)) for entry in plain["effects"]]})


def _known(kind: type[Any], plain: dict[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {key: value for key, value in plain.items() if key in names}
