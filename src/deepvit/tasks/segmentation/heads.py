"""Decoders: from feature maps to logits. UPerNet's is segmentation-models-pytorch's, the auxiliary head torchvision's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from deepvit.errors import UserError


class SteadyNorm(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a channel has one value, from which none can be estimated.

    The pyramid pools its coarsest map to a single cell; with one image in all torch's own batch norm fails there. Several
    processes have several values, and their statistics (``layers.synced_norm``).
    """

    synchronises = True

    def forward(self, input: Tensor) -> Tensor:
        """As torch's, but for one value a channel."""
        if self.training and input.numel() == input.shape[1]:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def steadied(module: nn.Module) -> nn.Module:
    """A freshly built module with every batch norm in it replaced by ``SteadyNorm``."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, SteadyNorm(child.num_features, child.eps, child.momentum))
        else:
            steadied(child)
    return module


class UPerHead(nn.Module):
    """UPerNet (Xiao et al. 2018, arXiv 1807.10221): pooled pyramid on the coarsest map, feature pyramid over all.

    Args:
        widths: channels of the maps, from fine to coarse.
        channels: of the decoder.
        classes: K.
        dropout: before the last layer.
    """

    def __init__(self, widths: tuple[int, ...], channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        try:
            from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
        except ImportError:
            raise UserError(
                "--head upernet needs the extra: pip install 'deepvit[segmentation]' (--head linear does not)"
            ) from None
        # Its first two entries are maps of stride 1 and 2, which it does not read.
        self.decoder = steadied(
            UPerNetDecoder([0, 0, *widths], encoder_depth=1 + len(widths), decoder_channels=channels)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps [B, C, h, w] → logits [B, K, h, w] of the finest."""
        given: list[Any] = [None, None, *maps]
        logits: Tensor = self.classify(self.dropout(self.decoder(given)))
        return logits


class LinearHead(nn.Module):
    """Batch norm and one linear layer on the last map: what can be read from the features as they are."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.norm = SteadyNorm(width)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps → logits [B, K, h, w] of the last."""
        logits: Tensor = self.classify(self.dropout(self.norm(maps[-1])))
        return logits


def auxiliary(width: int, classes: int) -> nn.Module:
    """torchvision's FCN head, for any width."""
    return steadied(FCNHead(max(width, 4), classes) if width >= 4 else FCNHead(4, classes))
