"""The convolutional stem of DeepViT-S and -L: three convolutions where the plain network has one."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.layers.format import Format, nchw_to
from torch import Tensor, _assert, nn

from deepvit.errors import UserError
from deepvit.models.checks import Size

_STEM_WIDTH = 64


class ConvStem(PatchEmbed):  # type: ignore[misc]
    """Images [B, C, H, W] to tokens [B, N, dim] by three convolutions (official code's form).

    7×7 stride 2 to 64 channels, batch norm, ReLU; 3×3 to 64, batch norm, ReLU; then (p/2)×(p/2) stride p/2
    to ``dim`` for patch size p: 8×8 stride 8 as published, where p is 16. Other even patch sizes keep the
    first two layers, so that a patch still covers p×p pixels. It is timm's ``PatchEmbed`` otherwise: fixed
    and dynamic image sizes, padding, output formats.

    Raises:
        UserError: the patch size is odd (the stem halves the image first), or it is to be changed
            afterwards.
    """

    def __init__(
        self,
        img_size: Size | None = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        # A timm release that does not know device and dtype builds without them.
        placed = {name: value for name, value in (("device", device), ("dtype", dtype)) if value is not None}
        super().__init__(img_size, patch_size, in_chans, embed_dim, bias=bias, **placed, **kwargs)
        height, width = self.patch_size
        if height % 2 or width % 2:
            raise UserError(
                f"patch_size={patch_size}: the conv stem halves the image before it cuts patches, so its "
                "patch size is even; use an even patch_size or stem='linear'"
            )
        half = (height // 2, width // 2)
        del self._modules["proj"]  # the base made the single convolution of the linear stem
        self.conv1 = nn.Conv2d(in_chans, _STEM_WIDTH, 7, stride=2, padding=3, bias=False, **placed)
        self.bn1 = nn.BatchNorm2d(_STEM_WIDTH, **placed)
        self.conv2 = nn.Conv2d(_STEM_WIDTH, _STEM_WIDTH, 3, padding=1, bias=False, **placed)
        self.bn2 = nn.BatchNorm2d(_STEM_WIDTH, **placed)
        self.proj = nn.Conv2d(_STEM_WIDTH, embed_dim, half, stride=half, bias=bias, **placed)

    def set_input_size(self, img_size: Size | None = None, patch_size: Size | None = None) -> None:
        """Change the image size; a changed patch size is refused: the stem is learned for one."""
        if patch_size is not None:
            pair = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
            if pair != tuple(self.patch_size):
                raise UserError(
                    f"patch_size={patch_size}: the conv stem was built for patches of {self.patch_size[0]}×"
                    f"{self.patch_size[1]} pixels and cannot change it; build the model with that patch_size"
                )
        super().set_input_size(img_size=img_size)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to tokens [B, N, dim], or to a grid in the output format that was asked for."""
        _, _, height, width = x.shape
        rows, columns = self.patch_size
        if self.img_size is not None and self.strict_img_size:
            message = (
                f"Input of {height}×{width} pixels does not match the model's {self.img_size[0]}×"
                f"{self.img_size[1]}; build it with img_size=… or dynamic_img_size=True."
            )
            # One by one: torch.fx knows no "and".
            _assert(height == self.img_size[0], message)
            _assert(width == self.img_size[1], message)
        elif self.dynamic_img_pad:
            x = F.pad(x, (0, -width % columns, 0, -height % rows))
        else:
            message = (
                f"Input of {height}×{width} pixels is not divisible by patches of {rows}×{columns}; "
                "dynamic_img_pad=True pads it."
            )
            _assert(height % rows == 0, message)
            _assert(width % columns == 0, message)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.proj(x)
        if self.flatten:
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt != Format.NCHW:
            x = nchw_to(x, self.output_fmt)
        x = self.norm(x)
        return x
