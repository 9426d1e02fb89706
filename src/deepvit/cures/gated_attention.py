"""Gated attention: a gate from the block's input on each channel of attention's output.

Mechanism: a softmax must give its weight to something; a gate lets a head give nothing for a token, so that no
token has to serve as a sink, and makes the step from values to projection less than linear.

Formula: ``out = (softmax(QKᵀ/√d) V) ⊙ σ(x W_g)`` before the projection, x what attention reads. Fused attention stays.
Source: Qiu et al. 2025, "Gated Attention for Large Language Models" (arXiv 2505.06708); timm has it for new networks.
Cost: a projection C × C more a block: about a twelfth of a block's parameters.
Start: ``init="identity"`` (ours) 2σ(x W_g) with W_g = 0, which is 1; ``init="paper"`` σ(x W_g) with W_g normal of
deviation 0.02, which halves attention's output at once.
Helps: tokens that serve as attention sinks, maps that are too sharp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.memory import now
from deepvit.cures.target import VALUE_ATTENTION, add_part, attention_of, like
from deepvit.errors import UserError


class Gate(nn.Module):
    """``scale·σ(x W_g)`` [B, N, D] on attention's output."""

    def __init__(self, dim: int, width: int, identity: bool, **factory: Any) -> None:
        super().__init__()
        self.scale = 2.0 if identity else 1.0
        self.weight = nn.Linear(dim, width, bias=False, **factory)
        if identity:
            nn.init.zeros_(self.weight.weight)
        else:
            nn.init.trunc_normal_(self.weight.weight, std=0.02)

    def see(self, _attn: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Hook before attention: the gate, from what attention reads."""
        now().gate = self.scale * self.weight(inputs[0]).sigmoid()

    def change(self, _proj: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        """Hook before the projection: the gated output."""
        here = now()
        gate, here.gate = here.gate, None
        assert gate is not None
        return inputs[0] * gate


@dataclass(frozen=True)
class Options:
    """Options of gated attention."""

    init: str = "identity"
    """"identity": 2σ with a gate of 0. "paper": σ, weights normal of deviation 0.02."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it into these blocks; raises UserError where attention has a gate, or no place for one."""
    found = [(n, attention_of(model, n, "gated_attention", *VALUE_ATTENTION)) for n in blocks]
    for number, attn in found:
        if getattr(attn, "gate", None) is not None:
            raise UserError(f"blocks.{number}.attn has a gate already")
    for _, attn in found:
        part = Gate(attn.qkv.in_features, attn.proj.in_features, options.init == "identity", **like(attn))
        add_part(attn, "output_gate", part)
        attn.register_forward_pre_hook(part.see)
        attn.proj.register_forward_pre_hook(part.change)


CURE = Cure(
    name="gated_attention",
    mechanism="a learned gate on attention's output: AV ⊙ σ(x W_g)",
    source="Qiu et al. 2025, arXiv 2505.06708",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"gate"}),
    helps="attention sinks, maps that are too sharp",
    answers={"sharp_maps": "lets a head give nothing, where it would put all its weight on one token"},
)
