"""Talking heads: mix attention over heads before and after the softmax.

Mechanism: heads stay different where layers do not, so mixtures of heads make maps that single heads cannot.

Formula: ``W·softmax(L·(QKᵀ/√d))·V``, L and W [H, H] with bias, over the head axis (timm's
``TalkingHeadAttn``).
Source: Shazeer et al. 2020 (arXiv 2003.02436); CaiT (arXiv 2103.17239); the patch diversification recipe
turns it on.
Cost: 2(H² + H) parameters a block, and the maps in memory: no fused attention.
Start: ``init="identity"`` L = W = 1; ``init="paper"`` timm's initialisation of a linear layer.
Helps: neighbouring blocks with alike maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.cait import TalkingHeadAttn
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.target import KeepsPlaces, blocks_of, like, plain_attention
from deepvit.errors import UserError


class TalkingHeads(KeepsPlaces, TalkingHeadAttn):  # type: ignore[misc]
    """timm's layer in the place of timm's ``Attention``: takes over its projections, norms and dropout."""

    def __init__(self, source: Any, identity: bool) -> None:
        super().__init__(source.proj.in_features, source.num_heads, **like(source))
        self.head_dim, self.scale = source.head_dim, source.scale
        for name in ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop"):
            setattr(self, name, getattr(source, name))
        if identity:
            for mixing in (self.proj_l, self.proj_w):
                nn.init.eye_(mixing.weight)
                nn.init.zeros_(mixing.bias)
        else:
            for mixing in (self.proj_l, self.proj_w):
                nn.init.trunc_normal_(mixing.weight, std=0.02)
                nn.init.zeros_(mixing.bias)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, N, C] to tokens; masks are refused, because mixed logits have no masked form."""
        if attn_mask is not None or is_causal:
            raise UserError("talking_heads takes no attention mask: logits are mixed over heads")
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        logits = (self.q_norm(q) * self.scale) @ self.k_norm(k).transpose(-2, -1)
        maps = self.proj_l(logits.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(dim=-1)
        maps = self.attn_drop(self.proj_w(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        out = (maps @ v).transpose(1, 2).reshape(b, n, -1)
        return torch.as_tensor(self.proj_drop(self.proj(self.norm(out))))


@dataclass(frozen=True)
class Options:
    """Options of talking heads."""

    init: str = "identity"
    """"identity": both mixings are unit matrices. "paper": normal, deviation 0.02, as in CaiT."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Replace these blocks' attention; raises UserError where it has parts that cannot be kept."""
    found = [(number, plain_attention(model, number, "talking_heads")) for number in blocks]
    for number, attn in found:
        new = TalkingHeads(attn, options.init == "identity")
        blocks_of(model)[number].attn = new.train(attn.training)


CURE = Cure(
    name="talking_heads",
    mechanism="mix heads before and after the softmax: W·softmax(L·QKᵀ/√d)·V",
    source="Shazeer et al. 2020, arXiv 2003.02436; timm's layer (CaiT)",
    options=Options,
    put=put,
    needs_maps=True,
    identity_at_start=True,
    slots=frozenset({"map"}),
    helps="maps that repeat",
    answers={
        "maps_alike": "mixes heads before and after the softmax, for the same reason at less change",
    },
)
