"""LayerScale: a small learned gain per channel on each residual branch.

Mechanism: branches that start small let a deep network begin near the identity and grow what helps.

Formula: ``x + γ∘branch(x)``, γ [C] learned, one for attention and one for the MLP. timm's ``LayerScale``.
Source: Touvron et al. 2021, CaiT, "Going deeper with Image Transformers" (arXiv 2103.17239).
Cost: 2C parameters a block.
Start: ``init="identity"`` γ = 1 leaves trained weights as they are; ``init="paper"`` CaiT's by depth: 0.1 to
18 blocks, 1e-5 to 24, 1e-6 beyond. ``value`` sets another.
Helps: deep networks that do not train, or gain nothing from further blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.layers import LayerScale
from torch import nn

from deepvit.cures.cure import Cure
from deepvit.cures.target import blocks_of, like
from deepvit.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of LayerScale."""

    init: str = "identity"
    """"identity": γ = 1. "paper": CaiT's value for the depth."""
    value: float | None = None
    """γ at the start, in place of what ``init`` says."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it on both branches of these blocks; raises UserError where a block has it, or no place for it."""
    found = blocks_of(model, "layerscale")
    for number in blocks:
        for name in ("ls1", "ls2"):
            place = getattr(found[number], name, None)
            if place is None:
                kind = type(found[number]).__name__
                raise UserError(f"blocks.{number} ({kind}) cannot take layerscale: it has no {name}")
            if not isinstance(place, nn.Identity):
                raise UserError(
                    f"blocks.{number}.{name} is {type(place).__name__}: the model has layerscale already"
                )
    value = options.value
    if value is None:
        value = 1.0 if options.init == "identity" else cait_value(len(found))
    for number in blocks:
        block = found[number]
        dim = int(block.attn.proj.out_features)
        block.ls1 = LayerScale(dim, init_values=value, **like(block)).train(block.training)
        block.ls2 = LayerScale(dim, init_values=value, **like(block)).train(block.training)


def cait_value(depth: int) -> float:
    """CaiT's initial γ for a network of so many blocks."""
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


CURE = Cure(
    name="layerscale",
    mechanism="learned gain per channel on each residual branch: x + γ∘branch(x)",
    source="Touvron et al. 2021, arXiv 2103.17239 (CaiT); timm's layer",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"branch gain"}),
    helps="depth that does not train",
    answers={
        "patches_alike": "lets each branch start small, so that deep blocks smooth less",
    },
)
