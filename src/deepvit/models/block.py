"""The transformer block of DeepViT: timm's, with a choice of attention and a scale around its residuals."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Block
from torch import Tensor, nn


class ResidualScaleBlock(Block):  # type: ignore[misc]
    """Pre-norm block that computes ``x + branch(norm(r·x)) / r`` for both branches (DeepViT-S and -L: r =
    0.5).

    Tokens [B, N, C] to [B, N, C]. With r = 1 it is timm's ``Block``, whose state names and drop path it
    keeps.

    Args:
        attention: module that takes the place of the block's attention; ``None`` keeps timm's.
        residual_scale: r, above 0.
        **kwargs: timm's ``Block`` arguments.
    """

    def __init__(
        self, *, attention: nn.Module | None = None, residual_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.residual_scale = residual_scale
        if attention is not None:
            self.attn = attention

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens [B, N, C] to [B, N, C]; the mask goes to the attention, as in timm."""
        r = self.residual_scale
        if r == 1.0:  # written out: TorchScript knows no super()
            x = x + self.drop_path1(
                self.ls1(self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal))
            )
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        else:
            attended = self.attn(self.norm1(r * x), attn_mask=attn_mask, is_causal=is_causal)
            x = x + self.drop_path1(self.ls1(attended)) / r
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(r * x)))) / r
        return x
