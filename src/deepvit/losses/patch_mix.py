"""Patch-aligned mixing of images, and the label of every patch.

Shapes: B images, N = h·w patch tokens, K classes, S sources (images that went into one mixed image).
Source: CutMix: Yun et al. 2019 (arXiv 1905.04899);
Mixup: Zhang et al. 2017 (arXiv 1710.09412).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deepvit.errors import UserError
from deepvit.losses.precision import full


@dataclass(frozen=True)
class PatchLabels:
    """The label of every patch, stored as who went into the image and how much of each is in each patch.

    ``dense()`` would take B·N·K numbers (200 MB for 256 ImageNet images); this takes B·S·(K + N).

    Attributes:
        sources: [B, S, K] label distribution of each source image, rows summing to 1.
        share: [B, N, S] how much of each source a patch holds, rows summing to 1, or to 0 for a patch without a label,
            which counts for nothing.
        grid: (h, w) with N = h·w, patches in row-major order.
        held: number of patches that the mean is over, a scalar; None: those of this batch that have a label. In several
            processes, whose batches may hold different numbers, the mean of theirs.
    """

    sources: Tensor
    share: Tensor
    grid: tuple[int, int]
    held: Tensor | None = None

    @classmethod
    def whole(cls, labels_BK: Tensor, grid: tuple[int, int]) -> PatchLabels:
        """Every patch has its image's label: what images that were not cut have."""
        share = labels_BK.new_ones(labels_BK.shape[0], grid[0] * grid[1], 1)
        return cls(labels_BK.unsqueeze(1), share, grid)

    def dense(self) -> Tensor:
        """Each patch's label distribution, [B, N, K]."""
        return torch.bmm(self.share, self.sources)

    def image(self) -> Tensor:
        """Each image's label distribution, [B, K]: its patches' labels averaged by area."""
        return torch.bmm(self.share.mean(dim=1, keepdim=True), self.sources).squeeze(1)

    def to(self, device: torch.device | str) -> PatchLabels:
        """The same labels on another device."""
        held = None if self.held is None else self.held.to(device)
        return PatchLabels(self.sources.to(device), self.share.to(device), self.grid, held)


@dataclass(frozen=True)
class MixedBatch:
    """What ``PatchMix`` returns: images [B, 3, H, W], targets [B, K] of the image loss, labels of patches."""

    images: Tensor
    targets: Tensor
    patches: PatchLabels


class PatchMix:
    """CutMix whose rectangle follows the patch grid, or Mixup, with the image's and every patch's label.

    Args:
        patch_size: pixels of one token's side (int or (height, width)): 16 for ViT/16; 32 for Swin with
            4-pixel patches, whose last stage merged 8×8 of them.
        num_classes: K.
        cutmix_alpha: Beta(α, α) parameter of CutMix, 0 turns it off.
        mixup_alpha: the same for Mixup.
        prob: probability that a batch is mixed at all.
        switch_prob: probability of CutMix when both are on.
        label_smoothing: ε; a hard label becomes (1 − ε) at its class plus ε/K everywhere, before mixing.
        per_image: a rectangle (or λ) of its own for each image, instead of one for the batch.
        pairs: which image is mixed in: ``"drawn"`` by a permutation, or ``"mirrored"``, that of the reversed batch, as
            timm's Mixup does (for batches that are shuffled already).

    Calling it takes images [B, C, H, W] and labels, int [B] or already soft [B, K] (from a Mixup before it:
    the patches then hold that mixture), and returns a ``MixedBatch``; the input is not changed. Random
    numbers come from torch's CPU generator, or from ``generator``.

    Raises UserError for options out of range, and when the patch size does not divide the images.
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int],
        num_classes: int,
        *,
        cutmix_alpha: float = 1.0,
        mixup_alpha: float = 0.0,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        label_smoothing: float = 0.0,
        per_image: bool = False,
        pairs: Literal["drawn", "mirrored"] = "drawn",
        generator: torch.Generator | None = None,
    ) -> None:
        self.patch_size = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
        self.num_classes = num_classes
        for name, value in (("cutmix_alpha", cutmix_alpha), ("mixup_alpha", mixup_alpha)):
            if not value >= 0 or math.isinf(value):
                raise UserError(f"{name}={value}: must be 0 (off) or a positive number")
        for name, value in (
            ("prob", prob),
            ("switch_prob", switch_prob),
            ("label_smoothing", label_smoothing),
        ):
            if not 0 <= value <= 1:
                raise UserError(f"{name}={value}: must be between 0 and 1")
        if min(self.patch_size) < 1:
            raise UserError(f"patch_size={patch_size}: must be at least 1 pixel")
        self.cutmix_alpha, self.mixup_alpha = cutmix_alpha, mixup_alpha
        self.prob, self.switch_prob = prob, switch_prob
        self.label_smoothing = label_smoothing
        self.per_image = per_image
        if pairs not in ("drawn", "mirrored"):
            raise UserError(f"pairs={pairs!r}: choose drawn or mirrored")
        self.pairs = pairs
        self.generator = generator

    def __call__(self, images: Tensor, labels: Tensor) -> MixedBatch:
        """Mix one batch; see the class."""
        grid = self._grid(images)
        soft_BK = soft_labels(labels, self.num_classes, self.label_smoothing)
        kind = self._kind()
        if kind == "none":
            patches = PatchLabels.whole(soft_BK, grid)
            return MixedBatch(images, patches.image(), patches)
        b = images.shape[0]
        if self.pairs == "mirrored":
            partner = torch.arange(b - 1, -1, -1, device=images.device)
        else:
            partner = torch.randperm(b, generator=self.generator).to(images.device)
        lam = [self._beta(kind) for _ in range(b if self.per_image else 1)]
        if kind == "cutmix":
            own_Bhw = torch.stack([self._keep_mask(value, grid) for value in lam]).to(images.device)
            pixels = own_Bhw.repeat_interleave(self.patch_size[0], 1).repeat_interleave(self.patch_size[1], 2)
            mixed = torch.where(pixels.unsqueeze(1), images, images[partner])
            own_BN = own_Bhw.flatten(1).to(soft_BK.dtype).expand(b, -1)
        else:
            weight = torch.tensor(lam, dtype=soft_BK.dtype, device=images.device).unsqueeze(1)
            mixed = torch.lerp(images[partner], images, weight.to(images.dtype)[:, :, None, None])
            own_BN = weight.expand(b, grid[0] * grid[1])
        patches = PatchLabels(
            torch.stack((soft_BK, soft_BK[partner]), dim=1), torch.stack((own_BN, 1 - own_BN), dim=-1), grid
        )
        return MixedBatch(mixed, patches.image(), patches)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        (height, width), (ph, pw) = images.shape[-2:], self.patch_size
        if height % ph or width % pw:
            raise UserError(
                f"patch CutMix needs images that the patch size divides: {height}×{width} pixels, "
                f"patches of {ph}×{pw}; resize or crop to {-(-height // ph) * ph}×{-(-width // pw) * pw}"
            )
        return height // ph, width // pw

    def _kind(self) -> str:
        draw, switch = torch.rand(2, generator=self.generator).tolist()
        if draw >= self.prob or not (self.cutmix_alpha or self.mixup_alpha):
            return "none"
        if self.cutmix_alpha and self.mixup_alpha:
            return "cutmix" if switch < self.switch_prob else "mixup"
        return "cutmix" if self.cutmix_alpha else "mixup"

    def _beta(self, kind: str) -> float:
        alpha = self.cutmix_alpha if kind == "cutmix" else self.mixup_alpha
        # Two gammas make a Beta; torch's Beta distribution takes no generator, and the gamma sampler does.
        gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=self.generator)
        total = float(gammas.sum())
        return float(gammas[0]) / total if total > 0 else 0.5

    def _keep_mask(self, lam: float, grid: tuple[int, int]) -> Tensor:
        """[h, w], False inside a rectangle that covers about 1 − λ of the grid, placed uniformly."""
        side = math.sqrt(max(0.0, 1.0 - lam))
        height, width = (min(size, round(size * side)) for size in grid)
        spot = torch.rand(2, generator=self.generator).tolist()
        top = min(int(spot[0] * (grid[0] - height + 1)), grid[0] - height)
        left = min(int(spot[1] * (grid[1] - width + 1)), grid[1] - width)
        keep = torch.ones(grid, dtype=torch.bool)
        keep[top : top + height, left : left + width] = False
        return keep


def soft_labels(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Label distributions [B, K], float32, of int labels [B] (smoothed by ε) or soft labels [B, K] (kept).

    Raises UserError when a label is not in 0..K−1 (looked at on the CPU only: on an accelerator that would
    stall the queue every step, and the scatter asserts it there) or when soft labels have another width.
    """
    if labels.is_floating_point():
        if labels.ndim != 2 or labels.shape[1] != num_classes:
            raise UserError(f"soft labels must be [B, {num_classes}], not {list(labels.shape)}")
        return full(labels)
    if labels.ndim != 1:
        raise UserError(f"hard labels must be [B], not {list(labels.shape)}")
    if labels.device.type == "cpu" and labels.numel():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise UserError(f"labels run from {low} to {high}, but {num_classes} classes are numbered from 0")
    off = torch.full((len(labels), num_classes), smoothing / num_classes, device=labels.device)
    return off.scatter_(1, labels.long().unsqueeze(1), 1 - smoothing + smoothing / num_classes)
