"""Asking a network for whole images: at once or by windows, over several scales, and mirrored."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.tasks.segmentation.choices import InferOptions
from deepvit.tasks.segmentation.network import SegmentationNetwork

WHOLE = 2.0
"""Images of up to so many times the pixels of a training crop are seen at once by ``auto``."""


def logits_of(network: nn.Module, images: Tensor, window: tuple[int, int], options: InferOptions) -> Tensor:
    """Logits, or the logarithm of averaged probabilities where there is more than one pass: both fit cross-entropy.

    Args:
        network: a ``SegmentationNetwork`` in evaluation mode, or what answers as one does.
        images: normalised [B, 3, H, W].
        window: height and width of a window: the training size.
        options: how.

    Returns:
        [B, K, H, W]
    """
    height, width = images.shape[-2:]
    sizes = [(max(1, round(height * s)), max(1, round(width * s))) for s in options.scales]
    passes = [(size, flip) for size in sizes for flip in ((False, True) if options.flip else (False,))]
    if passes == [((height, width), False)]:
        return one_pass(network, images, window, options)
    total: Tensor | None = None
    for size, flip in passes:
        given = images
        if size != (height, width):
            # With antialiasing: a network sees a smaller image as a camera further away would take it.
            given = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        if flip:
            given = given.flip(-1)
        logits = one_pass(network, given, window, options)
        logits = logits.flip(-1) if flip else logits
        if size != (height, width):
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        share = logits.float().softmax(1)
        total = share if total is None else total.add_(share)
    assert total is not None
    return total.div_(len(passes)).clamp_min_(torch.finfo(torch.float32).tiny).log_()


def one_pass(network: nn.Module, images: Tensor, window: tuple[int, int], options: InferOptions) -> Tensor:
    """Logits [B, K, H, W] of images as they are."""
    only = fixed(network)
    if options.inference == "whole" and only is not None and tuple(images.shape[-2:]) != only:
        raise UserError(
            f"--inference whole: the network takes images of {only[0]}×{only[1]} pixels only, not "
            f"{images.shape[-2]}×{images.shape[-1]}; leave it out, and windows of that size are seen"
        )
    window = only or window
    if not slides(network, images, window, options):
        answer: Tensor = network(images)["out"]
        return answer
    try:
        # Seconds of import time that windows alone need.
        from monai.inferers.utils import sliding_window_inference
    except ImportError:
        raise UserError(
            "windows need the extra: pip install 'deepvit[segmentation]' (--inference whole does not)"
        ) from None
    result = sliding_window_inference(
        images, window, 1, lambda part: network(part)["out"], overlap=options.overlap, mode="constant"
    )
    assert isinstance(result, Tensor)
    return result


def slides(network: nn.Module, images: Tensor, window: tuple[int, int], options: InferOptions) -> bool:
    """Whether images are seen by windows."""
    size = tuple(images.shape[-2:])
    only = fixed(network)
    if only is not None:
        return size != only
    if options.inference != "auto":
        return options.inference == "slide"
    return size[0] * size[1] > WHOLE * window[0] * window[1]


def fixed(network: nn.Module) -> tuple[int, int] | None:
    """The only size of images that a network takes."""
    return network.depths.fixed if isinstance(network, SegmentationNetwork) else None
