"""Value residual: blend each block's values with the first block's.

Mechanism: deep values carry little of what tokens were; a share of the first block's brings it back, so that
even a uniform map has different tokens to average.

Formula: ``V_l ← λ₁ V_1 + λ₂ V_l``, two learned scalars a block. The map is untouched: fused attention stays.
Source: Zhou et al. 2024, "Value Residual Learning" (arXiv 2410.17897; ResFormer, with learned λ).
Cost: 2 parameters a block; the first block's values stay in memory during the pass.
Start: ``init="identity"`` λ = (0, 1); ``init="paper"`` λ = (0.5, 0.5), which changes the function at once.
Helps: patch tokens that grow alike with depth, attention that concentrates on few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.memory import first_values, follow, keep_values, remembers
from deepvit.cures.target import VALUE_ATTENTION, add_part, attention_of, like, split_values
from deepvit.errors import UserError


class ValueResidual(nn.Module):
    """Blends values [B, N, D] inside what ``qkv`` returns; ``blend`` is (λ₁, λ₂)."""

    def __init__(self, start: tuple[float, float], **factory: Any) -> None:
        super().__init__()
        self.blend = nn.Parameter(torch.tensor(start, **factory))

    @remembers
    def change(self, _module: nn.Module, _inputs: Any, qkv: Tensor) -> Tensor:
        """Hook on ``qkv``."""
        queries_keys, values = split_values(qkv)
        from_first, own = self.blend.to(qkv).unbind()
        blended = from_first * first_values("value_residual") + own * values
        return torch.cat((queries_keys, blended), dim=-1)


@dataclass(frozen=True)
class Options:
    """Options of the value residual."""

    init: str = "identity"
    """"identity": λ from (0, 1). "paper": λ from (0.5, 0.5)."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it into these blocks after the first; raises UserError where values cannot be reached."""
    start = (0.0, 1.0) if options.init == "identity" else (0.5, 0.5)
    for attn in after_the_first(model, blocks, "value_residual", *VALUE_ATTENTION):
        part = ValueResidual(start, **like(attn))
        add_part(attn, "value_residual", part)
        # Before what reads the values: they are to be the blended ones.
        attn.qkv.register_forward_hook(part.change, prepend=True)


def after_the_first(model: nn.Module, blocks: list[int], cure: str, *kinds: type) -> list[Any]:
    """Let these blocks know block 0's values; return the attention modules of those after block 0.

    Block 0 itself is left alone (it would be given its own values). Raises UserError when no other is asked
    for, or when a block's attention is of another class.
    """
    later = [number for number in blocks if number > 0]
    if not later:
        raise UserError(f"{cure} hands block 0's values to later blocks; blocks={blocks} names none")
    first = attention_of(model, 0, cure, *kinds)
    found = [attention_of(model, number, cure, *kinds) for number in later]
    follow(model, cure)
    if not any(hook is keep_values for hook in first.qkv._forward_hooks.values()):
        first.qkv.register_forward_hook(keep_values)
    return found


CURE = Cure(
    name="value_residual",
    mechanism="blend values with the first block's: V ← λ₁V_first + λ₂V",
    source="Zhou et al. 2024, arXiv 2410.17897",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"first values"}),
    helps="alike patches, maps that repeat",
    answers={
        "maps_alike": "gives deep blocks the first block's values to work on, so equal maps lose less",
    },
)
