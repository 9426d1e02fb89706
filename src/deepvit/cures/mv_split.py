"""MV-split residual: the tokens' mean and what differs from it go through the residual sum apart.

Mechanism: in very deep networks the mean over tokens comes to dominate the stream. Weighing a branch's mean and
its rest apart, and letting the branch's mean replace the stream's instead of adding to it, keeps the mean bounded.

Formula: ``y = x + β∘(u − ū) + α∘(ū − g·x̄)``, u a branch, bars means over tokens, α and β [C] learned. g = 1 is the
published form.
Source: arXiv 2605.06169 (mean-dominated collapse; networks of 400 to 1,000 layers).
Cost: 4C parameters a block (and 2 with the identity start), two passes over each branch's output.
Start: ``init="paper"`` α = 0, β = 0.03, g = 1, for training from scratch: it changes the function at once.
``init="identity"`` (ours) α = β = 1 and g learned for each branch from 0.
Helps: patch tokens that grow alike in deep networks, a mean that outgrows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.cures.branches import BRANCHES, ChangesBranch, pre_norm_blocks
from deepvit.cures.cure import Cure
from deepvit.cures.masks import token_mean
from deepvit.cures.target import like


class MeanSplit(ChangesBranch):
    """``β∘(u − ū) + α∘(ū − g x̄)`` in the place of the branch u."""

    pull: Tensor

    def __init__(self, dim: int, identity: bool, **factory: Any) -> None:
        super().__init__("mv_split")
        self.mean_gain = nn.Parameter(torch.full((dim,), 1.0 if identity else 0.0, **factory))
        self.rest_gain = nn.Parameter(torch.full((dim,), 1.0 if identity else 0.03, **factory))
        if identity:
            self.pull = nn.Parameter(torch.zeros((), **factory))
        else:
            self.register_buffer("pull", torch.ones((), **factory))

    def combine(self, stream: Tensor, branch: Tensor, mask: Tensor | None) -> Tensor:
        """See the class; padding is not part of the means."""
        mean, before = token_mean(branch, mask), token_mean(stream, mask)
        alpha, beta = self.mean_gain.to(branch), self.rest_gain.to(branch)
        return (beta * (branch - mean) + alpha * (mean - self.pull.to(branch) * before)).to(branch.dtype)


@dataclass(frozen=True)
class Options:
    """Options of the MV-split residual."""

    init: str = "identity"
    """"identity": α = β = 1, g learned from 0. "paper": α = 0, β = 0.03, g = 1."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it on both branches of these blocks; raises UserError where a block does not norm before them."""
    for block in pre_norm_blocks(model, blocks, "mv_split"):
        dim = int(block.attn.proj.out_features)
        for number, places in enumerate(BRANCHES, 1):
            part = MeanSplit(dim, options.init == "identity", **like(block))
            part.attach(block, f"mean_split{number}", *places)


CURE = Cure(
    name="mv_split",
    mechanism="the tokens' mean and rest apart: x + β∘(u − ū) + α∘(ū − x̄)",
    source="arXiv 2605.06169 (MV-split residual)",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"residual sum"}),
    helps="alike patches in very deep networks",
    answers={"patches_alike": "keeps the mean of the tokens from outgrowing what tells them apart"},
)
