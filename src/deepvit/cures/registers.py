"""Registers: extra learned tokens that attention can use as scratch space.

Mechanism: large ViTs turn uninformative patches into storage, which shows as tokens of huge norm; tokens of
their own for that purpose leave the patches to the image.

Formula: R learned tokens are put between the class token and the patches, and thrown away at the end.
Source: Darcet et al. 2023, "Vision Transformers Need Registers" (arXiv 2309.16588); timm's ``reg_tokens``.
Cost: R·C parameters and R more tokens in every block.
Start: not the identity: attention gives weight to the new tokens at once. They start at timm's normal(0,
1e-6).
Helps: outlier patch tokens, noisy maps in dense prediction. Acts on the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from deepvit.cures.cure import Cure
from deepvit.cures.target import like
from deepvit.errors import UserError


@dataclass(frozen=True)
class Options:
    """Options of registers."""

    count: int = 4
    """R, number of register tokens."""


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Give the model registers; raises UserError where it has some, or lays out its tokens in another way."""
    add_tokens(model, options.count, "registers")
    nn.init.normal_(model.reg_token, std=1e-6)  # type: ignore[arg-type]


def add_tokens(model: nn.Module, wanted: int, cure: str) -> None:
    """Zero tokens of timm's ``reg_tokens`` between class token and patches; raises UserError as ``put`` does."""
    if not isinstance(model, VisionTransformer) or type(model)._pos_embed is not VisionTransformer._pos_embed:
        raise UserError(
            f"{type(model).__name__} cannot take {cure}: its tokens are not laid out as timm's ViT's"
        )
    if model.num_reg_tokens:
        raise UserError(f"the model has {model.num_reg_tokens} registers already")
    if wanted < 1:
        raise UserError(f"{cure}: count={wanted} must be at least 1")
    count, before = wanted, model.num_prefix_tokens
    factory = like(model)
    model.reg_token = nn.Parameter(torch.zeros(1, count, model.embed_dim, **factory))
    model.num_reg_tokens = count
    model.num_prefix_tokens = before + count
    if model.pos_embed is not None and not model.no_embed_class:
        table = model.pos_embed
        # Registers get a place in the position table too, as timm has it; zero, so that they start as
        # themselves.
        zeros = table.new_zeros(1, count, table.shape[2])
        grown = torch.cat((table[:, :before], zeros, table[:, before:]), dim=1).detach()
        model.pos_embed = nn.Parameter(grown, requires_grad=table.requires_grad)
    if hasattr(model.patch_drop, "num_prefix_tokens"):
        model.patch_drop.num_prefix_tokens = model.num_prefix_tokens


CURE = Cure(
    name="registers",
    mechanism="extra learned tokens beside the class token, dropped at the end",
    source="Darcet et al. 2023, arXiv 2309.16588; timm's reg_tokens",
    options=Options,
    put=put,
    needs_maps=False,
    identity_at_start=False,
    slots=frozenset({"prefix tokens"}),
    helps="outlier patches",
    per_block=False,
)
