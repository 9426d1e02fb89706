"""Whether labels are those of the network's classes: only then do they say how good an answer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from deepvit.collapse.lesions.effects import Lesions
from deepvit.collapse.lesions.score import Score
from deepvit.collapse.lesions.trials import Trial


def agreeing_score(
    intact: Trial, score: Score | None, targets: Any, numbers: Sequence[int], found: Lesions
) -> Score | None:
    """The score, with the intact network's written into ``found``; None (and a note) where the labels are others'.

    Labels of other classes agree with the answers by chance only: by no more than the most frequent label would,
    and three standard errors.
    """
    if score is None or intact.meter is None:
        return None
    value = float(intact.meter.compute()[score.key])
    if isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point():
        labels = targets[list(numbers)]
        most = 100 * float(torch.bincount(labels.long().clamp_min(0)).max()) / len(labels)
        chance = most + 3 * (most * (100 - most) / len(labels)) ** 0.5 if most < 100 else 0.0
        if value <= min(chance, 99.0):
            found.notes.append("labels")
            return None
    found.score_name, found.score = score.name, value
    return score
