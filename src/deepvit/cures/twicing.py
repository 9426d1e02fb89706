"""Twicing attention: average once more what the first average left out, and add it back.

Mechanism: attention smooths; applied to its own residual it gives back detail that the first pass lost, and
(2A − A²) shrinks what distinguishes tokens more slowly with depth than A does.

Formula: ``A V + λ_h·A (V − A V)``, λ = 1 is ``(2A − A²) V``. Two calls of fused attention, no map.
Source: Abdullaev and Nguyen, "Transformer Meets Twicing: Harnessing Unattended Residual Information" (ICLR 2025, arXiv
2503.00687); written from the formula.
Cost: attention's own product a second time; H parameters a block.
Start: ``init="identity"`` learns λ per head from 0; ``init="paper"`` fixes λ = 1, which changes the function at once.
Helps: patch tokens that grow alike with depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, resolve_self_attn_mask
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.target import KeepsPlaces, blocks_of, like, plain_attention


class TwicingAttention(KeepsPlaces, Attention):  # type: ignore[misc]
    """timm's ``Attention`` with the second pass: takes over the projections, norms and dropout of ``source``."""

    strength: Tensor

    def __init__(self, source: Any, learned: bool) -> None:
        super().__init__(
            source.proj.in_features, source.num_heads, dim_out=source.proj.out_features, **like(source)
        )
        self.head_dim, self.attn_dim, self.scale = source.head_dim, source.attn_dim, source.scale
        for name in ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"):
            setattr(self, name, getattr(source, name))
        if learned:
            self.strength = nn.Parameter(torch.zeros(source.num_heads, **like(source)))
        else:
            self.register_buffer("strength", torch.ones(source.num_heads, **like(source)))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, N, C] to tokens; both passes look through the same mask."""
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        once = self.attend(q, k, v, attn_mask, is_causal)
        again = self.attend(q, k, v - once, attn_mask, is_causal)
        out = once + self.strength.to(once).view(1, -1, 1, 1) * again
        out = self.norm(out.transpose(1, 2).reshape(b, n, -1))
        return torch.as_tensor(self.proj_drop(self.proj(out)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """A·v, fused or not as timm chose."""
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=self.scale
            )
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = resolve_self_attn_mask(q.shape[-2], scores, mask, causal)
        if bias is None:
            return torch.as_tensor(self.attn_drop(scores.softmax(dim=-1)) @ v)
        scores = scores + bias
        # A padded query that may look at nothing gives 0, as fused attention has it; NaN would reach every token
        # in the second pass.
        nothing = torch.isneginf(scores).all(dim=-1, keepdim=True)
        maps = scores.masked_fill(nothing, 0).softmax(dim=-1).masked_fill(nothing, 0)
        return torch.as_tensor(self.attn_drop(maps) @ v)


@dataclass(frozen=True)
class Options:
    """Options of twicing."""

    init: str = "identity"
    """"identity": λ learned per head from 0. "paper": λ = 1, fixed."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Replace these blocks' attention; raises UserError where it has parts that cannot be kept."""
    found = [(number, plain_attention(model, number, "twicing")) for number in blocks]
    for number, attn in found:
        new = TwicingAttention(attn, options.init == "identity")
        new.fused_attn = attn.fused_attn
        blocks_of(model)[number].attn = new.train(attn.training)


CURE = Cure(
    name="twicing",
    mechanism="average again what averaging left out: AV + λA(V − AV), λ learned per head",
    source="Abdullaev and Nguyen, ICLR 2025, arXiv 2503.00687",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"map"}),
    helps="alike patches, uniform maps",
    answers={"patches_alike": "gives back detail that one average lost"},
)
