"""A network in operations that every program has: Re-attention folded into one mixture of maps, weights as they are used.

What evaluation computes, written for a graph: no operator of ours, no float64, no question about sizes.
"""

# B batch, N tokens, C model width, H heads, D head width

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepvit.errors import UserError
from deepvit.layers import ReAttention


def plain(network: nn.Module) -> nn.Module:
    """A copy of the network in evaluation mode that computes the same in plain operations; the network itself stays.

    Raises:
        UserError: Re-attention whose norm has no running statistics: it would depend on the other images of a batch.
    """
    written = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(written.modules()):
        if parametrize.is_parametrized(module):
            as_used(module)
    for name, module in list(written.named_modules()):
        if isinstance(module, ReAttention) and folds(type(module)):
            fold(module, name)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1)):
            module.forward = functools.partial(pooled, sizes=sides(module.output_size))  # type: ignore[method-assign]
        elif isinstance(module, PatchEmbed) and module.dynamic_img_pad:
            module.dynamic_feat_size = functools.partial(cells, patch=module.patch_size)
    return written


def as_used(module: nn.Module) -> None:
    """Let a layer with parametrized weights hold them as they are used.

    Not by torch's ``remove_parametrizations``: it takes the weight out of a class that the copy shares with the network.
    """
    parts: Any = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in parts}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def folds(kind: type[ReAttention]) -> bool:
    """Whether ``folded`` says what evaluation computes: a subclass with a forward of its own needs one of its own."""
    nearest = next(k for k in kind.__mro__ if "folded" in vars(k) or "forward" in vars(k))
    return "folded" in vars(nearest)


def fold(layer: ReAttention, name: str) -> None:
    """Let a layer compute Re-attention by its folded Θ; its hooks and all other parts stay as they are."""
    try:
        theta, shift = layer.folded()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    rows = theta.sum(1)
    if layer.entry_mean:  # the norm's mean is that of N tokens, for any N
        rows = rows - layer.mixed_rows(theta)
        shift = shift + layer.entry_mean * layer.mixed_rows(theta)
    layer.register_buffer("mixing", theta[:, :, None, None].clone(), persistent=True)
    layer.register_buffer("shift", shift[:, None, None].clone(), persistent=True)
    layer.register_buffer("row_sum", rows[:, None, None].clone(), persistent=True)
    for part in ("reatten_matrix", "var_norm"):
        setattr(layer, part, nn.Identity())
    layer.forward = functools.partial(by_folded_theta, layer)  # type: ignore[method-assign]


def by_folded_theta(
    layer: Any, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Tokens [B, N, dim] to [B, N, dim_out]: ``(Θ' P + shift) V`` with the norm in Θ' and the shift.

    ``Θ' P V = Θ' P (V − V̄) + rowsum(Θ') V̄``, since the rows of P sum to 1: what all entries of nearly uniform maps share
    would cost float32 digits, and goes into the mean.
    """
    if attn_mask is not None or is_causal:
        raise UserError("ReAttention takes no attention mask: its norm is over whole maps")
    b, n, _ = x.shape
    qkv = layer.qkv(x).reshape(b, n, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = layer.q_norm(q), layer.k_norm(k)
    maps = torch.softmax((q * layer.scale) @ k.transpose(-2, -1), dim=-1)
    mean = v.mean(2, keepdim=True)
    y = F.conv2d(maps, layer.mixing) @ (v - mean) + (layer.row_sum + n * layer.shift) * mean
    y = layer.norm(y.transpose(1, 2).reshape(b, n, layer.attn_dim))
    if layer.gate is not None:
        y = y * layer.gate(x).sigmoid()
    result: Tensor = layer.proj(y)
    return result


def cells(img_size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Patches along height and width of images that are padded, in whole numbers: a program holds no division of others."""
    return (img_size[0] + patch[0] - 1) // patch[0], (img_size[1] + patch[1] - 1) // patch[1]


def sides(size: Any) -> tuple[int, int]:
    """Height and width of what a pooling layer gives."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def pooled(maps: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of [B, C, h, w] as two products by matrices, whose entries follow h and w in the graph."""
    rows, columns = (shares(whole, parts, maps) for whole, parts in zip(maps.shape[-2:], sizes, strict=True))
    return rows @ (maps @ columns.transpose(0, 1))


def shares(whole: int, parts: int, like: Tensor) -> Tensor:
    """[parts, whole]: row i averages the entries floor(i·whole/parts) to ceil((i+1)·whole/parts) − 1."""
    part = torch.arange(parts, device=like.device)[:, None]
    place = torch.arange(whole, device=like.device)[None]
    first = part * whole // parts
    last = ((part + 1) * whole + (parts - 1)) // parts
    inside = ((place >= first) & (place < last)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)
