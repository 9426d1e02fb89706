"""What cures hold on to in a timm model: its blocks and its attention, or a clear refusal."""

from __future__ import annotations

from typing import Any

from timm.layers import Attention, AttentionRope, DiffAttention
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.layers import ReAttention


class KeepsPlaces:
    """Mark of a cure's own attention that keeps timm's places: values are the last third of what ``qkv`` returns,
    and the output passes through ``norm`` before ``proj``. Cures that work on values can follow it in a block."""


def _called(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}"


def blocks_of(model: nn.Module, cure: str = "a cure") -> list[Any]:
    """The model's transformer blocks in order; raises UserError when it has none under ``blocks``."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        raise UserError(
            f"{type(model).__name__} cannot take {cure}: it has no transformer blocks under 'blocks'"
        )
    for number, block in enumerate(blocks):
        if not isinstance(getattr(block, "attn", None), nn.Module):
            kind = type(block).__name__
            raise UserError(
                f"{type(model).__name__} cannot take {cure}: blocks.{number} ({kind}) has no 'attn'"
            )
    return list(blocks)


def attention_of(model: nn.Module, number: int, cure: str, *kinds: type) -> Any:
    """A block's attention module, exactly of one of these classes; UserError says what it is instead."""
    attn = blocks_of(model, cure)[number].attn
    own = type(attn)
    if own not in kinds and not (KeepsPlaces in kinds and isinstance(attn, KeepsPlaces)):
        # Of two classes of one name (BEiT has an Attention of its own) the name says nothing.
        same = [kind for kind in kinds if kind.__name__ == own.__name__]
        known = [kind for kind in kinds if kind is not KeepsPlaces]
        names = " or ".join(sorted({_called(kind) if kind in same else kind.__name__ for kind in known}))
        raise UserError(
            f"blocks.{number}.attn is {_called(own) if same else own.__name__}, which cannot take {cure}; "
            f"it needs {names}"
        )
    if isinstance(attn, AttentionRope) and attn.qkv is None:
        raise UserError(f"blocks.{number}.attn projects q, k and v separately, which cannot take {cure}")
    return attn


def plain_attention(model: nn.Module, number: int, cure: str) -> Any:
    """timm's ``Attention`` without the parts that a replacement cannot keep."""
    attn = attention_of(model, number, cure, Attention)
    for part, present in (
        ("a norm on its output (scale_norm)", not isinstance(attn.norm, nn.Identity)),
        ("a gate", attn.gate is not None),
    ):
        if present:
            raise UserError(f"blocks.{number}.attn has {part}, which {cure} cannot keep")
    return attn


SOFTMAX_ATTENTION = (Attention, AttentionRope)
"""Attention whose rows sum to 1 and whose output passes through a module called ``norm``."""

VALUE_ATTENTION = (Attention, AttentionRope, ReAttention, DiffAttention, KeepsPlaces)
"""Attention whose values are the last third of what ``qkv`` returns."""


def split_values(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, N, 2D], and values [B, N, D], of a fused projection's output [B, N, 3D]."""
    width = qkv.shape[-1] // 3
    return qkv[..., : 2 * width], qkv[..., 2 * width :]


def like(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of a module's first parameter, for parts made beside it."""
    parameter = next(module.parameters())
    return {"device": parameter.device, "dtype": parameter.dtype}


def add_part(owner: nn.Module, name: str, part: nn.Module) -> None:
    """Give ``owner`` a child of that name, in the same mode; the name must be free."""
    assert not hasattr(owner, name), f"{name} is there already"
    owner.add_module(name, part.train(owner.training))
