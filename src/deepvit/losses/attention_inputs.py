"""What attention maps are made from, so that losses on maps need not keep them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepvit.layers.synced_norm import group_over, normalised


@dataclass(frozen=True)
class AttentionInputs:
    """What a block's maps are made from, so that they need not be kept.

    Attributes:
        q, k: [B, H, N, d], after any qk-norm.
        scale: the softmax is taken of scale · q kᵀ.
        mix: for blocks that change the maps after the softmax: maps [B, H, N, N] to maps (may use the whole
            batch, as Re-attention's batch norm does). None for plain attention.
    """

    q: Tensor
    k: Tensor
    scale: float
    mix: Callable[[Tensor], Tensor] | None = None


def head_mix(
    theta: Tensor,
    theta_bias: Tensor | None,
    norm: Any,
    entry_mean: float = 0.0,
) -> Callable[[Tensor], Tensor]:
    """Re-attention's change of the maps: Θ over heads, then the batch norm without touching its running
    statistics.

    ``norm`` is the batch norm over heads, a frozen one, or None; ``entry_mean`` is 1/N of the maps that its running
    statistics are of, 0 where it is not known.
    ``theta`` is [H, H] or a 1×1 convolution's [H, H, 1, 1]. For ``AttentionInputs.mix``.
    """
    theta = theta.flatten(1)

    def mix(maps: Tensor) -> Tensor:
        mixed = torch.einsum("hg,bgmn->bhmn", theta.to(maps.dtype), maps)
        if theta_bias is not None:
            mixed = mixed + theta_bias.to(maps.dtype)[:, None, None]
        if norm is None:
            return mixed
        frozen = not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm)
        if (
            group := group_over(norm)
        ) is not None:  # the network's own maps have the statistics of all processes
            return normalised(norm, mixed, group, counts=False)
        training = not frozen and (norm.training or norm.running_mean is None)
        mean, var = (None, None) if training else (norm.running_mean, norm.running_var)
        if mean is not None and entry_mean:
            mean = mean + (1.0 / maps.shape[-1] - entry_mean) * theta.detach().sum(1)
        return F.batch_norm(mixed, mean, var, norm.weight, norm.bias, training, 0.0, norm.eps)

    return mix
