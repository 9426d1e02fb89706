"""Centred attention: take the average of the values out of attention's output.

Mechanism: the uniform part of a softmax map writes the same vector, the mean value, into every token, which
makes tokens alike. Subtracting it makes each row of the map sum to 0.

Formula: ``out = A V − g·mean V = (A − g/N) V``, g = 1 for the published form. Exact on fused attention.
Source: Ali et al. 2023, "Centered Self-Attention Layers" (arXiv 2306.01610).
Cost: one pass over an [N, D] tensor; H parameters a block where g is learned.
Start: ``init="identity"`` learns g per head from 0; ``init="paper"`` fixes g = 1, which changes the function
at once.
Helps: patch tokens that grow alike, maps that turn uniform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.cures.attnscale import MeanFromValues
from deepvit.cures.cure import Cure
from deepvit.cures.target import SOFTMAX_ATTENTION, attention_of, like


class Centre(MeanFromValues):
    """``x − g_h mean V``; g [H] is learned from 0, or 1 for good."""

    gate: Tensor

    def __init__(self, heads: int, head_dim: int, learned: bool, **factory: Any) -> None:
        super().__init__(heads, head_dim, "centred_attention")
        if learned:
            self.gate = nn.Parameter(torch.zeros(heads, **factory))
        else:
            self.register_buffer("gate", torch.ones(heads, **factory))

    def combine(self, out: Tensor, mean: Tensor) -> Tensor:
        """See the class."""
        return out - self.gate.repeat_interleave(self.head_dim).to(out) * mean


@dataclass(frozen=True)
class Options:
    """Options of centred attention."""

    init: str = "identity"
    """"identity": g learned per head from 0. "paper": g = 1, fixed."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it into these blocks; raises UserError where attention is not timm's softmax attention."""
    found = [attention_of(model, number, "centred_attention", *SOFTMAX_ATTENTION) for number in blocks]
    for attn in found:
        part = Centre(attn.num_heads, attn.head_dim, options.init == "identity", **like(attn))
        part.attach(attn, "centre")


CURE = Cure(
    name="centred_attention",
    mechanism="take the mean value out of attention's output: AV − mean V",
    source="Ali et al. 2023, arXiv 2306.01610",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"map"}),
    helps="uniform maps, alike patches",
    answers={
        "uniform_maps": "takes the uniform part out of the attention output",
    },
)
