"""The tokens that leave a block, as [B, N, C] whatever layout the model keeps them in."""

from __future__ import annotations

from torch import Tensor


def tokens_in_order(
    output: Tensor, images: int, channels: set[int]
) -> tuple[Tensor, tuple[int, int] | None] | str:
    """``output`` as [B, N, C] and the grid if the layout has one, or the reason why that cannot be told.

    [B, N, C] stays; [N, B, C] (batch second) is turned; [B, h, w, C] and [B, C, h, w] become [B, h·w, C],
    told apart by which axis has one of the numbers of ``channels`` that the block's attention works on.
    """
    shape = tuple(output.shape)
    if output.ndim == 3:
        if images and shape[0] != images:
            if shape[1] != images:
                return f"neither axis of {shape} is over {images} images"
            output = output.transpose(0, 1)
        return output, None
    if output.ndim != 4 or (images and shape[0] != images):
        return f"{shape} is neither [B, N, C] nor on a grid for {images} images"
    last, first = shape[-1] in channels, shape[1] in channels
    if last and first and shape[1] == shape[2] == shape[3]:
        return f"which axis of {shape} is over channels cannot be told"
    if last and (not first or shape[1] == shape[2]):
        return output.flatten(1, 2), (shape[1], shape[2])
    if first:
        return output.flatten(2).mT, (shape[2], shape[3])
    return f"no axis of {shape} is over one of {sorted(channels)} channels"
