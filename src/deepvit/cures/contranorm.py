"""ContraNorm: push tokens apart after attention, by how alike they are.

Mechanism: the gradient step of a uniformity loss on the tokens, as a layer: from each token, the average of
those that look like it is taken away.

Formula: ``x ← x − s·softmax(cos(x, x))·x`` over the tokens of attention's output.
Source: Guo et al. 2023, "ContraNorm" (arXiv 2303.06562); here without a norm of its own after it.
Cost: one N×N Gram matrix of C channels a block (not one a head) and its product with x. 1 parameter a block.
Start: ``init="identity"`` learns s from 0; ``init="paper"`` fixes ``strength`` (the paper tunes it by task
and its value for images was not found: 0.1 is ours), which changes the function at once.
Helps: patch tokens that grow alike, in width as well as in direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.cures.cure import Cure
from deepvit.cures.masks import find_mask, mask_place, valid_tokens
from deepvit.cures.target import add_part, blocks_of, like
from deepvit.errors import UserError


class ContraNorm(nn.Module):
    """Tokens [B, N, C] to tokens, by the formula above; s is learned from 0 or fixed."""

    strength: Tensor

    def __init__(self, learned: bool, strength: float, **factory: Any) -> None:
        super().__init__()
        self.mask_place = -1
        if learned:
            self.strength = nn.Parameter(torch.zeros((), **factory))
        else:
            self.register_buffer("strength", torch.full((), strength, **factory))

    def change(self, _module: nn.Module, inputs: Any, given: dict[str, Any], tokens: Tensor) -> Tensor:
        """Hook after attention; padding is like nothing."""
        if tokens.ndim != 3:
            raise UserError(
                f"contranorm compares the tokens of a whole image, but this attention gives {list(tokens.shape)}"
            )
        mask = find_mask(inputs, given, self.mask_place, "contranorm")
        unit = F.normalize(tokens.float(), dim=-1)
        # Cosines lie within ±1, so the exponentials need no maximum taken off first.
        weight = torch.exp(unit @ unit.transpose(-2, -1))
        if mask is not None:
            weight = weight * valid_tokens(mask, weight).mT
        mean = (weight @ tokens.to(weight.dtype)) / weight.sum(dim=-1, keepdim=True)
        return (tokens - self.strength.to(mean.device) * mean).to(tokens.dtype)


@dataclass(frozen=True)
class Options:
    """Options of ContraNorm."""

    init: str = "identity"
    """"identity": s learned from 0. "paper": s fixed at ``strength``."""
    strength: float = 0.1
    """s of the paper's start."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Put it after the attention of these blocks."""
    if options.strength != 0.1 and options.init == "identity":
        raise UserError(
            "contranorm: strength is the fixed s of init='paper'; init='identity' learns it from 0"
        )
    found = blocks_of(model, "contranorm")
    for number in blocks:
        if hasattr(found[number], "window_size"):
            raise UserError(
                f"blocks.{number} ({type(found[number]).__name__}) attends in windows, which cannot take contranorm: it "
                "compares the tokens of a whole image"
            )
    for number in blocks:
        block = found[number]
        part = ContraNorm(options.init == "identity", options.strength, **like(block))
        add_part(block, "contra_norm", part)
        part.mask_place = mask_place(block.attn)
        block.attn.register_forward_hook(part.change, with_kwargs=True)


CURE = Cure(
    name="contranorm",
    mechanism="take alike tokens out of each: x − s·softmax(cos(x, x))·x after attention",
    source="Guo et al. 2023, arXiv 2303.06562",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=True,
    slots=frozenset({"tokens after attention"}),
    helps="alike patches",
    answers={
        "patches_alike": "pushes tokens apart after attention",
    },
)
