"""Labels of patches for the mixing loss: what a mask says of each patch of the last block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.losses import PatchLabels
from deepvit.ops.collective import mean_over_processes
from deepvit.tasks.task import Mixed


def by_mask(side: int, classes: int, ignore_index: int) -> Callable[[Tensor, Any], Mixed]:
    """Batches as they are, each patch labelled by its pixels.

    The mixing loss cuts images together so that patches of one image differ in label; the patches of a scene already do.
    A patch's label is the share of each class among its pixels that count; a patch without any is left out.

    Args:
        side: pixels of a token of the last block along a side.
        classes: K.
        ignore_index: value of pixels that do not count.
    """

    def mix(images: Tensor, masks: Any) -> Mixed:
        right, below = -masks.shape[-1] % side, -masks.shape[-2] % side
        cells = F.pad(masks, (0, right, 0, below), value=ignore_index)
        rows, columns = cells.shape[-2] // side, cells.shape[-1] // side
        cells = cells.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3).flatten(3)
        counts = cells.new_zeros((*cells.shape[:3], classes + 1), dtype=torch.float32)
        known = torch.where(cells == ignore_index, classes, cells)
        counts.scatter_add_(3, known, torch.ones_like(known, dtype=torch.float32))
        counts = counts[..., :classes].flatten(1, 2)
        share = counts / counts.sum(-1, keepdim=True).clamp_min(1.0)
        sources = torch.eye(classes, device=share.device).expand(len(share), classes, classes)
        held = mean_over_processes(
            share.sum()
        )  # the mean is over the patches of all processes, as the loss over pixels
        return Mixed(images, masks, PatchLabels(sources, share, (rows, columns), held))

    return mix
