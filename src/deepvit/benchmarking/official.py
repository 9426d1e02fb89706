"""The official formulation of Re-attention, for timing beside ours: 1×1 convolution and batch norm over whole maps.

Written from the order of operations of the official layer (papers: DeepViT, Zhou et al. 2021), in the precision that
autocast gives it; ``ops.reference`` is the same in float64, for tests, and would be slower than what people run.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.layers import ReAttention

# B batch, H heads, N tokens, D head width


def official_reattention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    theta: Tensor,
    theta_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
) -> Tensor:
    """``[B, H, N, D]`` each → ``[B, H, N, D]``; every map of the chain is formed and kept for the backward pass."""
    heads = q.shape[1]
    maps_BHNN = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1)
    weight = theta.to(maps_BHNN.dtype).view(heads, heads, 1, 1)
    mixed_BHNN = F.conv2d(maps_BHNN, weight, theta_bias.to(maps_BHNN.dtype))
    return F.batch_norm(mixed_BHNN, running_mean, running_var, norm_weight, norm_bias, training) @ v


class OfficialAttention(nn.Module):
    """A ``ReAttention`` layer computed the official way, with the layer's own parameters."""

    def __init__(self, layer: ReAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """``[B, N, C]`` → ``[B, N, C]``."""
        layer, (b, n, c) = self.layer, x.shape
        qkv = layer.qkv(x).reshape(b, n, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        maps_BHNN = ((q @ k.transpose(-2, -1)) * layer.scale).softmax(dim=-1)
        out = layer.var_norm(layer.reatten_matrix(maps_BHNN)) @ v
        return layer.proj(out.transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


def make_official(model: nn.Module) -> nn.Module:
    """Let every Re-attention layer of a DeepViT compute the official way, in place."""
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn = OfficialAttention(block.attn)
    return model
