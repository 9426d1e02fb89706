"""qk-norm: normalise queries and keys, so that attention logits stay bounded.

Mechanism: logits that grow in training make maps sharp (entropy collapse, the opposite of maps that turn
uniform) and training unstable; a norm on q and k bounds them.

Formula: ``softmax(norm(Q) norm(K)ᵀ / √d) V``, a LayerNorm (or RMS norm) over the head width, learned gain.
Source: Dehghani et al. 2023, ViT-22B (arXiv 2302.05442); timm's ``qk_norm``.
Cost: 4d parameters a block with LayerNorm; fused attention stays.
Start: not the identity: no gain per channel undoes a norm whose divisor differs by token.
Helps: maps that are too sharp, spikes of the loss, bfloat16 runs that diverge. Does not help uniform maps.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import LayerNorm, RmsNorm
from torch import nn

from deepvit.cures.cure import Cure
from deepvit.cures.target import blocks_of, like
from deepvit.errors import UserError

NORMS = {"layer": LayerNorm, "rms": RmsNorm}


@dataclass(frozen=True)
class Options:
    """Options of qk-norm."""

    norm: str = "layer"
    """"layer" or "rms"."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it into these blocks; raises UserError where attention has it, or has no place for it."""
    if options.norm not in NORMS:
        raise UserError(f"qk_norm: norm={options.norm!r}: choose {' or '.join(NORMS)}")
    attentions = [(number, blocks_of(model, "qk_norm")[number].attn) for number in blocks]
    for number, attn in attentions:
        for name in ("q_norm", "k_norm"):
            place = getattr(attn, name, None)
            if place is None or not hasattr(attn, "head_dim"):
                kind = type(attn).__name__
                raise UserError(
                    f"blocks.{number}.attn is {kind}, which cannot take qk_norm: it has no {name}"
                )
            if not isinstance(place, nn.Identity):
                raise UserError(
                    f"blocks.{number}.attn.{name} is {type(place).__name__}: the model has qk_norm already"
                )
    for _, attn in attentions:
        for name in ("q_norm", "k_norm"):
            norm = NORMS[options.norm](attn.head_dim, eps=1e-6, **like(attn))
            setattr(attn, name, norm.train(attn.training))


CURE = Cure(
    name="qk_norm",
    mechanism="normalise queries and keys, so that maps cannot grow too sharp",
    source="Dehghani et al. 2023, arXiv 2302.05442; timm's qk_norm",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=False,
    slots=frozenset({"queries and keys"}),
    helps="maps that are too sharp",
    answers={
        "sharp_maps": "normalises queries and keys, which bounds the scores",
    },
)
