"""Orthogonal residual: a branch adds only what the stream does not point to already.

Mechanism: the part of a branch along the stream only makes each token longer or shorter; taking it away leaves
what turns the token, so that depth goes on to change features.

Formula: ``x + f − s·(⟨x, f⟩ / (‖x‖² + ε))·x``, token by token, for both branches f of a block; ε = 1e-6.
Source: "Revisiting Residual Connections: Orthogonal Updates" (arXiv 2505.11881); written from the formula.
Cost: one pass over each branch's output; at most 2 parameters a block.
Start: ``init="identity"`` learns s for each branch from 0; ``init="paper"`` fixes s = 1, which changes the
function at once.
Helps: deep blocks that add little; tokens that grow long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.cures.branches import BRANCHES, ChangesBranch, pre_norm_blocks
from deepvit.cures.cure import Cure
from deepvit.cures.target import like
from deepvit.losses.precision import full

EPS = 1e-6


class OrthogonalResidual(ChangesBranch):
    """``f − s (⟨x, f⟩ / (‖x‖² + ε)) x``, s learned from 0 or 1 for good."""

    strength: Tensor

    def __init__(self, learned: bool, **factory: Any) -> None:
        super().__init__("orthogonal_residual")
        if learned:
            self.strength = nn.Parameter(torch.zeros((), **factory))
        else:
            self.register_buffer("strength", torch.ones((), **factory))

    def combine(self, stream: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
        """See the class; sums over channels in float32 at least."""
        x, f = full(stream), full(branch)
        share = (x * f).sum(dim=-1, keepdim=True) / (x.square().sum(dim=-1, keepdim=True) + EPS)
        return (f - self.strength.to(x) * share * x).to(branch.dtype)


@dataclass(frozen=True)
class Options:
    """Options of the orthogonal residual."""

    init: str = "identity"
    """"identity": s learned for each branch from 0. "paper": s = 1, fixed."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it on both branches of these blocks; raises UserError where a block does not norm before them."""
    for block in pre_norm_blocks(model, blocks, "orthogonal_residual"):
        for number, places in enumerate(BRANCHES, 1):
            part = OrthogonalResidual(options.init == "identity", **like(block))
            part.attach(block, f"orthogonal{number}", *places)


CURE = Cure(
    name="orthogonal_residual",
    mechanism="a branch without its part along the stream: x + f − s(⟨x,f⟩/‖x‖²)x",
    source="arXiv 2505.11881 (orthogonal residual update)",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"residual sum"}),
    helps="deep blocks that add little",
)
