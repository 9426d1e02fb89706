"""Sizes that cannot work are refused before the network is built, with the nearest sizes that do."""

from __future__ import annotations

from collections.abc import Sequence

from deepvit.errors import UserError

Size = int | Sequence[int]


def check_width(embed_dim: int, num_heads: int) -> None:
    """Raise :class:`UserError` unless ``num_heads`` divides ``embed_dim``; names the nearest that fit."""
    for name, value in (("embed_dim", embed_dim), ("num_heads", num_heads)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if embed_dim % num_heads == 0:
        return
    below = embed_dim // num_heads * num_heads
    widths = [width for width in (below, below + num_heads) if width > 0]
    fewer = next(heads for heads in range(num_heads - 1, 0, -1) if embed_dim % heads == 0)
    more = next((heads for heads in range(num_heads + 1, embed_dim + 1) if embed_dim % heads == 0), None)
    heads = [count for count in (fewer, more) if count is not None]
    raise UserError(
        f"embed_dim={embed_dim} is not divisible by num_heads={num_heads}: use "
        f"embed_dim={_either(widths)}, or num_heads={_either(heads)}"
    )


def check_image(img_size: Size, patch_size: Size) -> None:
    """Raise :class:`UserError` unless the patch divides the image on both sides; names the nearest."""
    image, patch = _pair("img_size", img_size), _pair("patch_size", patch_size)
    for side, step in zip(image, patch, strict=True):
        if side % step:
            fitting = [size for size in (side // step * step, (side // step + 1) * step) if size > 0]
            raise UserError(
                f"patch_size={_written(patch)} does not divide img_size={_written(image)}: use img_size="
                f"{_either(fitting)}, another patch_size, or dynamic_img_size=True with dynamic_img_pad=True"
            )


def _pair(name: str, size: Size) -> tuple[int, int]:
    """One number means a square."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(side, int) or side < 1 for side in pair):
        raise UserError(f"{name}={size!r} must be one positive number of pixels, or height and width")
    return pair[0], pair[1]


def _written(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else str(pair)


def _either(numbers: list[int]) -> str:
    return " or ".join(str(number) for number in numbers)
