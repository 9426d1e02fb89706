"""Re-attention: mix the maps of all heads into new ones and normalise them.

Mechanism: in deep blocks maps repeat from block to block while heads of one block stay different; mixing
heads makes new maps, and the norm amplifies what is not uniform in them.

Formula: ``Norm(Θ softmax(QKᵀ/√d)) V``, Θ [H, H] with bias over heads, batch norm over heads.
Source: DeepViT, Zhou et al. 2021 (arXiv 2103.11886); ``deepvit.layers.ReAttention``.
Cost: H² + 3H parameters a block; no map is kept, but time is about 1.5 to 2 of fused attention's.
Start: ``init="paper"`` replaces the layer as published. ``init="identity"`` adds it behind a gate,
``Y_h = P_h + g_h·Norm(Θ P)_h`` with g = 0 and Θ = 1, so that trained weights keep their function and the gate
learns how much to let in; with ``norm="none"`` no gate is needed, Θ = 1 is the identity by itself.
Helps: deep networks (24 blocks and more) whose deep blocks have alike maps; put it into those blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepvit import ops
from deepvit.cures.cure import Cure
from deepvit.cures.target import KeepsPlaces, attention_of, blocks_of, like
from deepvit.errors import UserError
from deepvit.layers import ReAttention
from deepvit.layers.reattention import at_tokens
from deepvit.losses.attention_inputs import head_mix


class GatedReAttention(KeepsPlaces, ReAttention):
    """Attention plus gated re-attention: ``Y_h = P_h + g_h·Norm(Θ P)_h``, [B, N, dim] to [B, N, dim].

    State names are ``ReAttention``'s plus ``mix_gate`` [H]. In evaluation the norm is a scale and a shift, so
    that Y is one mixture of maps and one call of the operator; in training attention and re-attention are
    two.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.var_norm, _BatchNorm)
        self.mix_gate = nn.Parameter(self.reatten_matrix.weight.new_zeros(self.num_heads))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens to tokens; masks are refused as in ``ReAttention``."""
        if attn_mask is not None or is_causal:
            raise UserError("reattention takes no attention mask: its norm is over whole maps")
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        q, k = self.q_norm(q), self.k_norm(k)
        dropout = self.attn_drop.p if self.attn_drop.training else 0.0
        if self.var_norm.training or self.var_norm.running_mean is None:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
            mixed = self.operate(q, k, v, dropout)
            out = out + self.mix_gate.to(out.dtype).view(1, -1, 1, 1) * mixed
        else:
            theta, bias = self.folded()
            bias = at_tokens(bias, self.mixed_rows(theta)[:, None], n, self.entry_mean)
            out = ops.reattention(
                q,
                k,
                v,
                theta,
                theta_bias=bias,
                norm="none",
                training=dropout > 0.0,
                scale=self.scale,
                dropout_p=dropout,
                backend=self.backend,
            )
        out = self.norm(out.transpose(1, 2).reshape(b, n, self.attn_dim))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return torch.as_tensor(self.proj_drop(self.proj(out)))

    def operate(self, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Re-attention by itself, [B, H, N, d]."""
        known = self._norm_arguments()
        return ops.reattention(
            q,
            k,
            v,
            self.reatten_matrix.weight.flatten(1),
            theta_bias=self._bias_at(q.shape[2], known),
            norm="batch",
            scale=self.scale,
            output_scale=self.output_scale,
            dropout_p=dropout,
            backend=self.backend,
            **known,
        )

    def folded(self) -> tuple[Tensor, Tensor]:
        """Θ' [H, H] and bias [H] of the one mixture that evaluation computes: Y = Θ'P + bias."""
        norm = self.var_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        theta, bias = self.reatten_matrix.weight.flatten(1), self.reatten_matrix.bias
        assert bias is not None
        gain = self.mix_gate * self.output_scale
        slope = gain * torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            slope = slope * norm.weight
        own = torch.eye(self.num_heads, device=theta.device, dtype=theta.dtype)
        shift = slope * (bias - norm.running_mean)
        return own + slope[:, None] * theta, shift if norm.bias is None else shift + gain * norm.bias

    def mixed_rows(self, theta: Tensor) -> Tensor:
        """What the norm has scaled is all but the map itself."""
        return theta.sum(1) - 1.0

    def mix_maps(self, maps: Tensor) -> Tensor:
        """Softmax maps [B, H, N, N] to the maps that multiply V, for the attention losses."""
        matrix = self.reatten_matrix
        mixed = head_mix(matrix.weight, matrix.bias, self.var_norm, self.entry_mean)(maps)
        return maps + self.output_scale * self.mix_gate.to(maps.dtype)[:, None, None] * mixed


@dataclass(frozen=True)
class Options:
    """Options of Re-attention."""

    init: str = "identity"
    """"identity": behind a gate of 0. "paper" (also "official"): the layer as published, Θ uniform."""
    norm: str = "batch"
    """"batch" as published, or "none"."""
    backend: str = "auto"
    """How it is computed: see ``deepvit.ops``."""
    rescale: bool = False
    """Multiply the normalised maps by d^-1/2, as the published S model does."""

    def __post_init__(self) -> None:
        if self.init == "official":
            object.__setattr__(self, "init", "paper")


def tokens_of(model: nn.Module) -> int:
    """Tokens of an image of the network's own size, class and register tokens included; 0 where it does not say."""
    patches = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return int(patches) + int(getattr(model, "num_prefix_tokens", 0)) if patches else 0


def put(model: nn.Module, blocks: list[int], options: Options) -> None:
    """Replace these blocks' attention; raises UserError where it is not timm's ``Attention``."""
    tokens = tokens_of(model)
    found = [(number, attention_of(model, number, "reattention", Attention)) for number in blocks]
    identity = options.init == "identity"
    kind = GatedReAttention if identity and options.norm == "batch" else ReAttention
    for number, attn in found:
        new = kind(
            attn.proj.in_features,
            num_heads=attn.num_heads,
            attn_head_dim=attn.head_dim,
            dim_out=attn.proj.out_features,
            init="identity" if identity else "official",
            norm=options.norm,
            backend=options.backend,
            rescale=options.rescale,
            **like(attn),
        )
        new.entry_mean = 1.0 / tokens if tokens else 0.0
        for name in ("qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop"):
            setattr(new, name, getattr(attn, name))
        new.scale = attn.scale
        blocks_of(model)[number].attn = new.train(attn.training)


CURE = Cure(
    name="reattention",
    mechanism="mix the maps of all heads and normalise: Norm(Θ softmax(QKᵀ/√d)) V",
    source="Zhou et al. 2021, arXiv 2103.11886 (DeepViT)",
    options=Options,
    put=put,
    needs_maps=True,
    identity_at_start=True,
    slots=frozenset({"map"}),
    helps="maps that repeat",
    answers={
        "maps_alike": "mixes the heads, which still differ, into maps of their own in each block",
    },
)
