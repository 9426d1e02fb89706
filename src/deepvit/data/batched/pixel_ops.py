"""Image operations on batches of uint8 images [K, 3, H, W], each image with its own parameter.

They equal PIL's, which timm's RandAugment calls: tables, colour and sharpness exactly, geometry with
bilinear sampling to rounding. K images, V = 256 grey values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Tensor = torch.Tensor


def apply_table(images: Tensor, tables: Tensor) -> Tensor:
    """Replaces value v of channel c of image k by ``tables[k, c, v]`` (uint8 [K, 3, 256])."""
    return tables.gather(2, images.flatten(2).long()).view_as(images)


def histogram(images: Tensor) -> Tensor:
    """Counts of each value: int64 [K, 3, 256]."""
    rows = images.flatten(0, 1).flatten(1).long()
    counts = torch.zeros(len(rows), 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, rows, torch.ones((), dtype=torch.int64, device=rows.device).expand_as(rows))
    return counts.view(-1, 3, 256)


def grey(images: Tensor) -> Tensor:
    """Luminance uint8 [K, 1, H, W] in PIL's fixed-point weights (ITU-R 601)."""
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(1)


def blend(base: Tensor, images: Tensor, factor_K: Tensor) -> Tensor:
    """``base + factor · (images - base)``, cut to 0..255 and rounded down, as PIL's Image.blend."""
    factor = factor_K.view(-1, 1, 1, 1)
    mixed = torch.lerp(base.float().expand(images.shape), images.float(), factor)
    return mixed.clamp_(0, 255).to(torch.uint8)


def invert_table(count: int, device: torch.device) -> Tensor:
    """v to 255 - v."""
    return _ramp(count, device, 255 - torch.arange(256, device=device))


def posterize_table(bits_K: Tensor) -> Tensor:
    """Keeps the highest ``bits`` bits (8 or more: unchanged; 0: black)."""
    mask = (255 << (8 - bits_K.clamp(max=8))) & 255
    return _per_image(torch.arange(256, device=bits_K.device) & mask[:, None])


def solarize_table(threshold_K: Tensor) -> Tensor:
    """Inverts values at or above the threshold."""
    values = torch.arange(256, device=threshold_K.device)
    return _per_image(torch.where(values < threshold_K[:, None], values, 255 - values))


def solarize_add_table(add_K: Tensor) -> Tensor:
    """Adds to values below 128."""
    values = torch.arange(256, device=add_K.device)
    return _per_image(torch.where(values < 128, (values + add_K[:, None]).clamp(max=255), values))


def brightness_table(factor_K: Tensor) -> Tensor:
    """Blends with black."""
    return _toward(torch.zeros_like(factor_K), factor_K)


def contrast_table(images: Tensor, factor_K: Tensor) -> Tensor:
    """Blends with the image's mean luminance."""
    mean = (grey(images).flatten(1).double().mean(1) + 0.5).floor()
    return _toward(mean.float(), factor_K)


def autocontrast_table(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255; a channel of one value stays."""
    present = histogram(images) > 0
    values = torch.arange(256, device=images.device)
    low = present.int().argmax(2, keepdim=True)
    high = 255 - present.flip(2).int().argmax(2, keepdim=True)
    width = (high - low).clamp(min=1).double()
    # PIL computes value · scale + offset in this form; another order (or 255 · 1/width) rounds differently
    scale = torch.full_like(width, 255.0) / width
    stretched = (values * scale + (-low * scale)).clamp(0, 255).long()
    return torch.where(high > low, stretched, values).to(torch.uint8)


def equalize_table(images: Tensor) -> Tensor:
    """Flattens each channel's histogram, as PIL does; a channel of one value stays."""
    counts = histogram(images)
    last = counts.gather(2, 255 - (counts > 0).flip(2).int().argmax(2, keepdim=True))
    step = (counts.sum(2, keepdim=True) - last) // 255
    before = counts.cumsum(2) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    flat = (step == 0) | ((counts > 0).sum(2, keepdim=True) <= 1)
    return torch.where(flat, torch.arange(256, device=images.device), table).to(torch.uint8)


def saturation(images: Tensor, factor_K: Tensor) -> Tensor:
    """Blends with the grey image (PIL's ImageEnhance.Color)."""
    return blend(grey(images), images, factor_K)


def sharpness(images: Tensor, factor_K: Tensor) -> Tensor:
    """Blends with the image smoothed by PIL's kernel (1 1 1, 1 5 1, 1 1 1) / 13; the rim is not smoothed."""
    if min(images.shape[-2:]) < 3:
        return images
    wide = images.float()
    # nine ones plus four times the centre: two short sums instead of a convolution
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4.0 * wide[:, :, 1:-1, 1:-1]
    smooth = wide.clone()
    smooth[:, :, 1:-1, 1:-1] = (total / 13.0 + 0.5).floor_()
    return blend(smooth, images, factor_K)


def gaussian_blur(images: Tensor, sigma_K: Tensor) -> Tensor:
    """Gaussian blur of standard deviation ``sigma`` in pixels, edges repeated (PIL uses box filters)."""
    count, channels, height, width = images.shape
    reach = min(6, height - 1, width - 1)
    if reach < 1:
        return images
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma_K.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    groups = count * channels
    wide = F.pad(images.float(), (reach,) * 4, mode="replicate").reshape(1, groups, height + 2 * reach, -1)
    wide = F.conv2d(wide, kernel.view(groups, 1, 1, -1), groups=groups)
    wide = F.conv2d(wide, kernel.view(groups, 1, -1, 1), groups=groups)
    return wide.add_(0.5).clamp_(0, 255).to(torch.uint8).view_as(images)


def affine(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Output pixel (x, y) takes the input at ``matrix`` [K, 2, 3] · (x, y, 1), in pixels from the upper left.

    Bilinear; what lies outside the image becomes ``fill`` (float [3], 0..255).
    """
    height, width = images.shape[-2:]
    grid = F.affine_grid(
        _normalised(matrix, height, width), [len(images), 3, height, width], align_corners=False
    )
    sampled = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    outside = (grid.abs() > 1.0).any(-1).unsqueeze(1)
    sampled = torch.where(outside, fill.view(1, 3, 1, 1), sampled)
    return sampled.add_(0.5).to(torch.uint8)


def rotation_matrix(degrees_K: Tensor, height: int, width: int) -> Tensor:
    """Matrix for ``affine`` that turns images counter-clockwise about their centre."""
    angle = degrees_K * (torch.pi / 180.0)
    cos, sin = angle.cos(), angle.sin()
    x, y = width / 2.0, height / 2.0
    first = torch.stack([cos, -sin, x - cos * x + sin * y], -1)
    second = torch.stack([sin, cos, y - sin * x - cos * y], -1)
    return torch.stack([first, second], 1)


def _normalised(matrix: Tensor, height: int, width: int) -> Tensor:
    """The same map in grid_sample's coordinates, -1..1 across the image."""
    scale = torch.tensor([[1.0, height / width, 2.0 / width], [width / height, 1.0, 2.0 / height]])
    theta = matrix * scale.to(matrix.device)
    theta[:, :, 2] += theta[:, :, 0] + theta[:, :, 1] - 1.0
    return theta


def _per_image(table_KV: Tensor) -> Tensor:
    return table_KV.to(torch.uint8)[:, None].expand(-1, 3, 256)


def _ramp(count: int, device: torch.device, values: Tensor) -> Tensor:
    return values.to(device=device, dtype=torch.uint8).expand(count, 3, 256)


def _toward(base_K: Tensor, factor_K: Tensor) -> Tensor:
    values = torch.arange(256, device=base_K.device, dtype=torch.float32)
    mixed = torch.lerp(base_K[:, None], values.expand(len(base_K), 256), factor_K[:, None])
    return _per_image(mixed.clamp_(0, 255))
