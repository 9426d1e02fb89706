"""The loss of segmentation: cross-entropy over the pixels that count, of all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.ops.collective import mean_over_processes
from deepvit.tasks.task import Criterion


def criterion(weights: Tensor | None, aux_weight: float, ignore_index: int) -> Criterion:
    """Cross-entropy in float32 over the pixels that count, of the decoder and, weighted, of the auxiliary head.

    It is the mean over the pixels of all processes, as in one process with the same global batch: gradients are
    averaged over processes, so each divides its sum by an equal share of all pixels, not by its own, of which one that drew
    much void has few. (Batches that are accumulated for one step count alike, however much void they hold.) A
    batch in which nothing counts has the loss 0, with gradients of 0.

    Args:
        weights: of the classes [K], or None.
        aux_weight: of the auxiliary head's loss.
        ignore_index: value of pixels that do not count.
    """

    def terms(output: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
        given = None if weights is None else weights.to(targets.device)
        share = share_of(targets, given, ignore_index)

        def mean(logits: Tensor) -> Tensor:
            total = F.cross_entropy(
                logits.float(), targets, weight=given, ignore_index=ignore_index, reduction="sum"
            )
            return total / share

        found = {"cross_entropy": mean(output["out"])}
        if "aux" in output:
            found["auxiliary"] = aux_weight * mean(output["aux"])
        return found

    return terms


def share_of(targets: Tensor, weights: Tensor | None, ignore_index: int) -> Tensor:
    """Pixels that count, by weight, of all processes over their number: a scalar above 0."""
    known = targets != ignore_index
    # A weighted mean is over weights, as torch's own.
    total = known.sum().float()
    if weights is not None:
        total = weights[torch.where(known, targets, 0)].mul(known).sum()
    return mean_over_processes(total).clamp_min(torch.finfo(torch.float32).tiny)
