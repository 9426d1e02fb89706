"""Feature maps of any timm network, from fine to coarse: the stages of a hierarchical one, or four depths of a plain ViT.

B images, C channels, h × w a map.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_exporting

from deepvit.errors import UserError

LEVELS = 4
FINEST = 2
"""Pixels of the finest map's cells where patches are smaller than four times that: more costs time and shows nothing new."""


@dataclass(frozen=True)
class Depths:
    """Where a backbone gives feature maps.

    Attributes:
        indices: blocks (plain) or stages whose output is taken, rising; one may stand for several levels of few blocks.
        channels: of each map.
        sides: pixels of each map's cells along a side.
        plain: whether all maps have one size, so that a neck has to make a pyramid of them.
        fixed: (height, width) of the only images that the backbone takes; None: any.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    sides: tuple[int, ...]
    plain: bool
    fixed: tuple[int, int] | None

    @property
    def multiple(self) -> int:
        """Images are padded to a multiple of it: the patch."""
        return self.sides[0]


def depths_of(backbone: nn.Module, window: tuple[int, int]) -> Depths:
    """Read the places from timm's account of a network.

    A plain ViT of L blocks gives blocks L/4, L/2, 3L/4 and L, as the segmentation set-ups of ViT do (2, 5, 8, 11 of 12).

    Args:
        backbone: without a classifier.
        window: (height, width) of training crops.

    Raises:
        UserError: a network that gives no feature maps, or none of such crops.
    """
    info: Any = getattr(backbone, "feature_info", None)
    known = [one for one in info if one.get("reduction") and one.get("num_chs")] if info else []
    if not known or not hasattr(backbone, "forward_intermediates"):
        raise UserError(
            f"{type(backbone).__name__} gives neither tokens nor feature maps (timm's forward_intermediates): segmentation "
            "needs a Vision Transformer or a network of stages, as vit_small_patch16_224 or swin_tiny_patch4_window7_224"
        )
    sides = [int(one["reduction"]) for one in known]
    plain = len(set(sides)) == 1
    if plain:
        chosen = [max(math.ceil((level + 1) * len(known) / LEVELS) - 1, 0) for level in range(LEVELS)]
    else:
        chosen = list(range(max(0, len(known) - LEVELS), len(known)))
    widths = tuple(int(known[i]["num_chs"]) for i in chosen)
    any_size = Depths(tuple(chosen), widths, tuple(sides[i] for i in chosen), plain, None)
    if getattr(backbone, "dynamic_img_size", False):
        return any_size
    return replace(any_size, fixed=fixed_size(backbone, any_size, window))


def fixed_size(backbone: nn.Module, depths: Depths, window: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of the only images that a network takes; None for one that takes any.

    Few networks say it, so it is tried, on tensors that have a shape and no values.

    Raises:
        UserError: not even crops of the size ``window``.
    """
    shapes = copy.deepcopy(backbone).to("meta")

    def refusal(size: tuple[int, int]) -> str | None:
        try:
            with torch.no_grad():
                feature_maps(shapes, depths, padded(torch.empty(1, 3, *size, device="meta"), depths.multiple))
        except Exception as error:  # each network refuses in its own way
            return (str(error).splitlines() or [type(error).__name__])[0]
        return None

    reason = refusal(window)
    if reason is not None:
        raise UserError(
            f"{type(backbone).__name__} gives no feature maps of crops of {window[0]}×{window[1]} pixels ({reason}); "
            "--scene.crop_size and --model.img_size choose another size"
        )
    other = (window[0] + 3 * depths.multiple, window[1] + 5 * depths.multiple)
    return None if refusal(other) is None else window


def feature_maps(backbone: nn.Module, depths: Depths, images: Tensor) -> list[Tensor]:
    """Maps [B, C, h, w], one a level, without class token and registers; the last one after the final norm.

    ``images`` [B, 3, H, W] must be multiples of ``depths.multiple``. The network's own forward runs to its end, so whatever
    listens to its blocks and its norm (diversity losses, the collapse report) sees what it always sees.
    """
    call: Any = backbone.forward_intermediates
    taken = sorted(set(depths.indices))
    final, maps = call(images, indices=taken, output_fmt="NCHW")
    found = dict(zip(taken, maps, strict=True))
    last = found[taken[-1]]
    found[taken[-1]] = as_map(final, last, int(getattr(backbone, "num_prefix_tokens", 0) or 0))
    levels = [found[index] for index in depths.indices]
    # A network of so few blocks that one stands for several levels: only the last level is normed.
    return [
        last if map_ is found[taken[-1]] and i < len(levels) - 1 else map_ for i, map_ in enumerate(levels)
    ]


def as_map(final: Tensor, like: Tensor, prefix: int) -> Tensor:
    """The output of ``forward_features``, whatever its layout, as the map ``like`` [B, C, h, w] of the same block."""
    _, channels, height, width = like.shape
    if final.ndim == 3 and final.shape[1:] == (prefix + height * width, channels):
        tokens = final[:, prefix:].transpose(1, 2)
        return tokens.reshape(
            final.shape[0], channels, height, width
        )  # len() would write the example's batch down
    if final.shape == like.shape:
        return final
    if final.ndim == 4 and final.shape[1:] == (height, width, channels):
        return final.permute(0, 3, 1, 2)
    return like  # a network whose last layers pool or widen what the last stage gives


class Neck(nn.Module):
    """Four maps of one size into a pyramid: each level is doubled, kept or halved as often as it needs.

    With patches of 16 the levels have cells of 4, 8, 16 and 32 pixels, by two transposed convolutions, one, none, and a
    maximum over 2 × 2, as in the segmentation set-ups of plain ViTs (BEiT, ViTDet's simple pyramid).

    Args:
        channels: of each map; kept.
        side: pixels of a token along a side.
    """

    def __init__(self, channels: tuple[int, ...], side: int) -> None:
        super().__init__()
        finer = min(2, max(0, int(math.log2(side / FINEST))))
        """How often the first level is doubled: twice, but to no finer than ``FINEST`` pixels."""
        self.steps = nn.ModuleList(resized(width, finer - level) for level, width in enumerate(channels))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """[B, C, h, w] each → [B, C, h·2^k, w·2^k]."""
        return [step(one) for step, one in zip(self.steps, maps, strict=True)]


def resized(channels: int, times: int) -> nn.Module:
    """Doubles a map ``times`` times, or halves it (a rest of one row or column is kept)."""
    if times < 0:
        return nn.MaxPool2d(2**-times, ceil_mode=True)
    layers: list[nn.Module] = []
    for _ in range(times):
        if layers:
            layers += [nn.GroupNorm(1, channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*layers)


def padded(images: Tensor, multiple: int) -> Tensor:
    """Images [B, 3, H, W] with zeros, the mean colour, at the right and the bottom, up to a multiple."""
    height, width = ((side + multiple - 1) // multiple * multiple for side in images.shape[-2:])
    below, right = height - images.shape[-2], width - images.shape[-1]
    # A program that is being written pads by whatever its images will need, not by what the example needs.
    return F.pad(images, (0, right, 0, below)) if is_exporting() or right or below else images
