"""AttnScale: amplify what attention does beyond averaging.

Mechanism: a softmax map is the uniform map plus a rest; the uniform part passes only the tokens' mean (the
lowest frequency), so depth turns tokens into their mean. AttnScale makes the rest larger, by a learned gain
per head.

Formula: ``(A − 1/N) scaled by 1 + λ_h``, that is ``out_h = A V + λ_h (A V − mean V)``, because the uniform
map times V is the mean of V. Hence exact on fused attention: no map is formed.
Source: Wang et al. 2022, "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis"
(arXiv 2203.05962), written as above.
Cost: H parameters a block and one pass over an [N, D] tensor. Start: λ = 0, the identity.
Helps: maps that turn uniform with depth, patch tokens that grow alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.masks import find_mask, mask_place, uniform_attention
from deepvit.cures.memory import now
from deepvit.cures.target import SOFTMAX_ATTENTION, add_part, attention_of, like, split_values


class MeanFromValues(nn.Module):
    """Base: sees the values as ``qkv`` gives them, and changes attention's output [B, N, D] before its norm.

    Both as hooks, so that the attention module (and its fused kernel) stays timm's.
    """

    def __init__(self, heads: int, head_dim: int, cure: str) -> None:
        super().__init__()
        self.heads, self.head_dim, self.cure = heads, head_dim, cure
        self.mask_place = -1

    def listen(self, _module: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Hook before attention: the mask, until its values are there."""
        now().mask = find_mask(inputs, given, self.mask_place, self.cure)

    def see(self, _module: nn.Module, _inputs: Any, qkv: Tensor) -> None:
        """Hook on ``qkv``: keep the mean value until the same attention uses it."""
        here = now()
        here.mean = uniform_attention(split_values(qkv)[1], here.mask, self.heads)
        here.mask = None

    def change(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Hook before ``norm``: the changed output."""
        here = now()
        mean, here.mean = here.mean, None
        assert mean is not None
        return self.combine(inputs[0], mean)

    def combine(self, out: Tensor, mean: Tensor) -> Tensor:
        """Attention's output [B, N, D] and the mean value [B, 1, D] (or one a token) to the new output."""
        raise NotImplementedError

    def attach(self, attn: Any, name: str) -> None:
        """Become a part of an attention module."""
        add_part(attn, name, self)
        self.mask_place = mask_place(attn)
        attn.register_forward_pre_hook(self.listen, with_kwargs=True)
        attn.qkv.register_forward_hook(self.see)
        attn.norm.register_forward_pre_hook(self.change)


class AttnScale(MeanFromValues):
    """``x + λ_h (x − mean V)``, λ [H] learned."""

    def __init__(self, heads: int, head_dim: int, **factory: Any) -> None:
        super().__init__(heads, head_dim, "attnscale")
        self.gain = nn.Parameter(torch.zeros(heads, **factory))

    def combine(self, out: Tensor, mean: Tensor) -> Tensor:
        """See the class."""
        gain = self.gain.repeat_interleave(self.head_dim).to(out)
        return out + gain * (out - mean)


@dataclass(frozen=True)
class Options:
    """AttnScale has none: its paper's start is the identity."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it into these blocks; raises UserError where attention is not timm's softmax attention."""
    found = [attention_of(model, number, "attnscale", *SOFTMAX_ATTENTION) for number in blocks]
    for attn in found:
        AttnScale(attn.num_heads, attn.head_dim, **like(attn)).attach(attn, "attn_scale")


CURE = Cure(
    name="attnscale",
    mechanism="amplify the non-uniform part of each map: AV + λ(AV − mean V), λ learned per head",
    source="Wang et al. 2022, arXiv 2203.05962 (AttnScale)",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"map"}),
    helps="uniform maps, alike patches",
    answers={
        "uniform_maps": "amplifies the part of each map that is not uniform",
    },
)
