"""NeuTRENO: pull attention's output back towards the first block's values.

Mechanism: self-attention minimises a functional whose optimum is one vector for all tokens; a fidelity term
to the first block's values keeps the optimum apart.

Formula: ``out_l = A V_l + λ (V_1 − V_l)``, λ = 0.6. Nothing of the map is needed: fused attention stays.
Source: Nguyen et al. 2023, "Mitigating Over-smoothing in Transformers via Regularized Nonlocal Functionals"
(arXiv 2312.00751); written from the formula.
Cost: no parameters worth counting; the first block's values stay in memory during the pass.
Start: ``init="identity"`` learns λ per block from 0; ``init="paper"`` fixes λ = 0.6, which changes the
function.
Helps: patch tokens that grow alike with depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention, AttentionRope
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.memory import first_values, now, remembers
from deepvit.cures.target import KeepsPlaces, add_part, like, split_values
from deepvit.cures.value_residual import after_the_first
from deepvit.errors import UserError
from deepvit.layers import ReAttention


class NeuTRENO(nn.Module):
    """``x + λ (V_1 − V_l)``, λ learned from 0 or fixed."""

    strength: Tensor

    def __init__(self, learned: bool, strength: float, **factory: Any) -> None:
        super().__init__()
        if learned:
            self.strength = nn.Parameter(torch.zeros((), **factory))
        else:
            self.register_buffer("strength", torch.full((), strength, **factory))

    @remembers
    def see(self, _module: nn.Module, _inputs: Any, qkv: Tensor) -> None:
        """Hook on ``qkv``: how far this block's values are from the first block's."""
        now().pull = first_values("neutreno") - split_values(qkv)[1]

    @remembers
    def change(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Hook before ``norm``: the changed output."""
        here = now()
        pull, here.pull = here.pull, None
        assert pull is not None
        return inputs[0] + self.strength.to(pull) * pull


@dataclass(frozen=True)
class Options:
    """Options of NeuTRENO."""

    init: str = "identity"
    """"identity": λ learned per block from 0. "paper": λ fixed at ``strength``."""
    strength: float = 0.6
    """λ of the paper's start."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it into these blocks after the first; raises UserError where values cannot be reached."""
    if options.strength != 0.6 and options.init == "identity":
        raise UserError("neutreno: strength is the fixed λ of init='paper'; init='identity' learns it from 0")
    for attn in after_the_first(
        model, blocks, "neutreno", Attention, AttentionRope, ReAttention, KeepsPlaces
    ):
        part = NeuTRENO(options.init == "identity", options.strength, **like(attn))
        add_part(attn, "neutreno", part)
        attn.qkv.register_forward_hook(part.see)
        attn.norm.register_forward_pre_hook(part.change)


CURE = Cure(
    name="neutreno",
    mechanism="pull towards the first block's values: AV + λ(V_first − V), λ = 0.6 or learned",
    source="Nguyen et al. 2023, arXiv 2312.00751",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"first values", "attention output"}),
    helps="alike patches",
    answers={
        "patches_alike": "feeds back what smoothing took from the values",
    },
)
