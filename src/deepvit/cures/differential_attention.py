"""Differential attention: the difference of two maps, so that what both attend to cancels.

Mechanism: each head's queries and keys are split into two halves, which make two maps; the second, times a
learned λ, is taken from the first. Common noise (and the common uniform part) cancels.

Formula: ``out = (1 − λ₀)·RMSNorm((softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V)``, λ₀ = 0.8 −
0.6·exp(−0.3·block).
Source: Ye et al. 2024, "Differential Transformer" (arXiv 2410.05258); timm's ``DiffAttention``.
Cost: two fused attention calls of half width; about 4d parameters a block.
Start: not the identity: halves of trained heads make other maps. The trained projections are kept as a start.
Helps: noisy maps that spread over irrelevant tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import DiffAttention
from torch import nn

from deepvit.cures.cure import Cure
from deepvit.cures.target import blocks_of, like, plain_attention
from deepvit.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of differential attention."""

    dual_lambda: bool = False
    """λ from two scalars (timm's simplification) in place of the paper's four vectors."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Replace these blocks' attention; raises UserError where it has parts that cannot be kept."""
    found = [(number, plain_attention(model, number, "differential_attention")) for number in blocks]
    for number, attn in found:
        if not isinstance(attn.q_norm, nn.Identity):
            raise UserError(
                f"blocks.{number}.attn has qk-norm, whose width differential_attention would halve"
            )
        if attn.head_dim % 2 or attn.attn_dim != attn.proj.out_features:
            raise UserError(
                f"blocks.{number}.attn has heads of width {attn.head_dim}, {attn.num_heads} of them; "
                "differential_attention halves an even width, and heads must fill the model's width"
            )
    for number, attn in found:
        new = DiffAttention(
            attn.attn_dim,
            num_heads=attn.num_heads,
            qkv_bias=attn.qkv.bias is not None,
            proj_bias=attn.proj.bias is not None,
            attn_drop=attn.attn_drop.p,
            proj_drop=attn.proj_drop.p,
            depth=number,
            dual_lambda=options.dual_lambda,
            **like(attn),
        )
        new.qkv, new.proj = attn.qkv, attn.proj
        blocks_of(model)[number].attn = new.train(attn.training)


CURE = Cure(
    name="differential_attention",
    mechanism="difference of two maps a head: (softmax₁ − λ softmax₂)V, normed",
    source="Ye et al. 2024, arXiv 2410.05258; timm's DiffAttention",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=False,
    slots=frozenset({"map", "attention output"}),
    helps="noisy maps",
)
