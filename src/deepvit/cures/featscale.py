"""FeatScale: weigh the tokens' mean and the rest of them anew after each block.

Mechanism: depth shrinks what distinguishes tokens against their mean; two learned gains a channel let the
network restore the balance.

Formula: ``x ← x + s∘mean(x) + t∘(x − mean(x))``, mean over tokens, s and t [C] learned.
Source: Wang et al. 2022 (arXiv 2203.05962), FeatScale; here on the block's output.
Cost: 2C parameters a block and one pass over its output. Start: s = t = 0, the identity (as in the paper).
Helps: patch tokens that grow alike. Attention is untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.masks import find_mask, mask_place, token_mean
from deepvit.cures.target import add_part, blocks_of, like


class FeatScale(nn.Module):
    """Tokens [B, N, C] to tokens, by the formula above."""

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        self.mask_place = -1
        self.mean_gain = nn.Parameter(torch.zeros(dim, **factory))
        self.rest_gain = nn.Parameter(torch.zeros(dim, **factory))

    def change(self, _module: nn.Module, inputs: Any, given: dict[str, Any], tokens: Tensor) -> Tensor:
        """Hook after the block; padding is not part of the mean."""
        mask = find_mask(inputs, given, self.mask_place, "featscale")
        # Some networks (SAM) hand a grid [B, h, w, C] from block to block.
        mean = token_mean(tokens.flatten(1, -2), mask).view(-1, *[1] * (tokens.ndim - 2), tokens.shape[-1])
        s, t = self.mean_gain.to(tokens), self.rest_gain.to(tokens)
        return tokens + s * mean + t * (tokens - mean)


@dataclass(frozen=True)
class Options:
    """FeatScale has none: its paper's start is the identity."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it after these blocks."""
    found = blocks_of(model, "featscale")
    for number in blocks:
        block = found[number]
        part = FeatScale(int(block.attn.proj.out_features), **like(block))
        add_part(block, "feat_scale", part)
        part.mask_place = mask_place(block)
        # Before what follows the tokens from block to block, which must see the block's last word.
        block.register_forward_hook(part.change, with_kwargs=True, prepend=True)


CURE = Cure(
    name="featscale",
    mechanism="reweigh the tokens' mean and the rest: x + s∘mean + t∘(x − mean), per channel",
    source="Wang et al. 2022, arXiv 2203.05962 (FeatScale)",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"tokens after the block"}),
    helps="uniform maps, alike patches",
    answers={
        "uniform_maps": "reweights the mean of the tokens against what tells them apart",
        "patches_alike": "raises what tells tokens apart against their mean",
    },
)
