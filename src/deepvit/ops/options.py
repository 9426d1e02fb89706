"""The options of one call of Re-attention, as the operator hands them to its backends."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor


class Options(NamedTuple):
    """What ``deepvit.ops.reattention`` documents, under the same names; all vectors are [H] or None."""

    theta_bias: Tensor | None = None
    norm: str = "batch"
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    training: bool = False
    batch_statistics: bool | None = None
    momentum: float = 0.1
    eps: float = 1e-5
    scale: float | None = None
    output_scale: float = 1.0
    dropout_p: float = 0.0
    process_group: dist.ProcessGroup | None = None

    def softmax_scale(self, width: int) -> float:
        """``scale``, by default D ** -0.5 for heads ``width`` wide."""
        return float(width**-0.5) if self.scale is None else self.scale

    @property
    def of_batch(self) -> bool:
        """Whether the norm takes the batch's statistics, and not the running ones."""
        if self.norm == "none":
            return False
        return self.training if self.batch_statistics is None else self.batch_statistics

    @property
    def dropout(self) -> float:
        """``dropout_p`` in training, else 0."""
        return self.dropout_p if self.training else 0.0
