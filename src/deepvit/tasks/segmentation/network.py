"""A backbone with neck and decoder: images to logits of every pixel."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from deepvit.tasks.segmentation.features import Neck, depths_of, feature_maps, padded
from deepvit.tasks.segmentation.heads import LinearHead, UPerHead, auxiliary

AUX_LEVEL = 2
"""The level that the auxiliary head reads: cells of 16 pixels in the usual pyramid."""
UNREAD = ("fc_norm", "attn_pool", "head", "head_dist")
"""Parts of timm's ViTs behind their tokens."""


class SegmentationNetwork(nn.Module):
    """Any timm network, read at four depths, with a decoder behind it.

    Args:
        backbone: without a classifier.
        classes: K.
        window: (height, width) of training crops, of which windows have the size.
        head: ``"upernet"`` or ``"linear"``.
        channels: of the UPerNet decoder.
        dropout: before the decoder's last layer.
        aux: whether there is an auxiliary head.

    Raises:
        UserError: a backbone that gives no feature maps of such crops.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        window: tuple[int, int],
        *,
        head: Literal["upernet", "linear"] = "upernet",
        channels: int = 512,
        dropout: float = 0.1,
        aux: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.window = window
        self.depths = depths_of(backbone, window)
        self.frozen = False
        self.neck: nn.Module | None = None
        self.aux: nn.Module | None = None
        widths = self.depths.channels
        if head == "linear":
            self.head: nn.Module = LinearHead(widths[-1], classes, dropout)
        else:
            self.neck = Neck(widths, self.depths.sides[0]) if self.depths.plain else None
            self.head = UPerHead(widths, channels, classes, dropout)
            self.aux = auxiliary(widths[min(AUX_LEVEL, len(widths) - 1)], classes) if aux else None
        for name in UNREAD:  # several devices wait for the gradient of every parameter that asks for one
            part = getattr(backbone, name, None)
            if isinstance(part, nn.Module):
                part.requires_grad_(False)

    def freeze(self) -> None:
        """Keep the backbone as it is from now on: no gradients, no dropout, no batch statistics."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """The mode of training; a frozen backbone stays in that of evaluation."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images [B, 3, H, W] of any size that the backbone takes → logits.

        Returns:
            ``out`` [B, K, H, W], and in training ``aux`` of the same shape where there is an auxiliary head, in the form of
            torchvision's segmentation networks.
        """
        size = images.shape[-2:]
        given = padded(images, self.depths.multiple)
        maps = feature_maps(self.backbone, self.depths, given)
        if self.neck is not None:
            maps = self.neck(maps)
        whole = given.shape[-2:]
        found = {"out": enlarged(self.head(maps), whole, size)}
        if self.training and self.aux is not None:
            found["aux"] = enlarged(self.aux(maps[min(AUX_LEVEL, len(maps) - 1)]), whole, size)
        return found


class Deployed(nn.Module):
    """A segmentation network as it is deployed: whole images [B, 3, H, W] → logits [B, K, H, W], nothing else."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images to logits."""
        logits: Tensor = self.network(images)["out"]
        return logits


def enlarged(logits: Tensor, whole: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """Logits of cells as those of the pixels of the padded image, of which the image itself is kept."""
    pixels = F.interpolate(logits, whole, mode="bilinear", align_corners=False)
    if is_exporting():  # a view of the pixels would fix in the program whether the example was padded
        rows, columns = (torch.arange(side, device=pixels.device) for side in size)
        return pixels.index_select(-2, rows).index_select(-1, columns)
    return pixels if whole == size else pixels[..., : size[0], : size[1]]
