"""The running mean of Re-attention's norm at another number of tokens than that of training.

The rows of a softmax map sum to 1, so that the mean entry of a mixed map is ``b_h + (1/N) Σ_g Θ[h,g]`` exactly, whatever the
images: the norm's running mean holds the 1/N of the maps that it was taken from. Maps of nearly equal weights spread about
this mean by a fraction of it; a network that is asked about larger or smaller images is then off by many standard
deviations in every entry (a segmenter trained on crops of 145 tokens and asked about 193: mean IoU 0.6% instead of
29.6%, records/camvid). The official code has one image size and no such case. A layer therefore keeps, beside the
statistics, the mean entry 1/N that they are of (``ReAttention.entry_mean``), and moves the mean to the N at hand. At
the same N nothing is changed.

The variance stays: weights that spread over N tokens by the same rule are 1/N each, and so is their spread; divided by the
spread of training their sum over tokens is that of training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deepvit.layers.reattention import ReAttention


def entries(model: nn.Module) -> dict[str, float]:
    """Mean entry 1/N of the maps that the statistics are of, by layer; layers that do not know it are left out."""
    return {
        name: module.entry_mean
        for name, module in model.named_modules()
        if isinstance(module, ReAttention) and module.entry_mean
    }


def set_entries(model: nn.Module, known: Mapping[str, float]) -> None:
    """Set them, by layer; of layers that are not named it is not known."""
    for name, module in model.named_modules():
        if isinstance(module, ReAttention):
            module.entry_mean = float(known.get(name, 0.0))


def of_tokens(model: nn.Module, tokens: int) -> None:
    """Say that the statistics of all layers are of maps of so many tokens."""
    for module in model.modules():
        if isinstance(module, ReAttention):
            module.entry_mean = 1.0 / tokens


@torch.no_grad()
def learn_entries(model: nn.Module, images: Tensor) -> None:
    """Say that the statistics are of maps as images [B, 3, height, width] of this size give them, by one forward pass.

    For a compiled network, whose layers do not notice it themselves.
    """
    seen: dict[ReAttention, float] = {}
    handles = [
        module.register_forward_pre_hook(lambda m, args: seen.update({m: 1.0 / args[0].shape[1]}))
        for module in model.modules()
        if isinstance(module, ReAttention)
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        if handles:
            model.eval()
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    for module, entry in seen.items():
        module.entry_mean = entry
