"""Patch-aligned mixing of images, the label of every patch, and the loss that asks each patch for its label.

Shapes: B images, N = h·w patch tokens, K classes, S sources (images that went into one mixed image).
Source: Gong et al. 2021 (arXiv 2104.12753), mixing loss; CutMix: Yun et al. 2019 (arXiv 1905.04899);
Mixup: Zhang et al. 2017 (arXiv 1710.09412).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses.precision import full, no_autocast

MIXING_FORMS = ("paper", "official")


@dataclass(frozen=True)
class PatchLabels:
    """The label of every patch, stored as who went into the image and how much of each is in each patch.

    ``dense()`` would take B·N·K numbers (200 MB for 256 ImageNet images); this takes B·S·(K + N).

    Attributes:
        sources: [B, S, K] label distribution of each source image, rows summing to 1.
        share: [B, N, S] how much of each source a patch holds, rows summing to 1, or to 0 for a patch without a label,
            which counts for nothing.
        grid: (h, w) with N = h·w, patches in row-major order.
    """

    sources: Tensor
    share: Tensor
    grid: tuple[int, int]

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
        return PatchLabels(self.sources.to(device), self.share.to(device), self.grid)


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
        cutmix_alpha, mixup_alpha: Beta(α, α) parameter of each, 0 turns it off.
        prob: probability that a batch is mixed at all.
        switch_prob: probability of CutMix when both are on.
        label_smoothing: ε; a hard label becomes (1 − ε) at its class plus ε/K everywhere, before mixing.
        per_image: a rectangle (or λ) of its own for each image, instead of one for the batch.

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


def patch_mixing(
    logits: Tensor,
    labels: Tensor | PatchLabels,
    form: str = "paper",
    *,
    prefix_tokens: int = 0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Ask each patch for the label of the image it came from.

    - ``"paper"``: ``mean_i CE(g(h_i[L]), y_i)`` over all patches. ``logits`` is [B, N, K] (grids [B, h, w, K]
      too); ``labels`` is hard [B, N] (smoothed by ``label_smoothing``), soft [B, N, K], or ``PatchLabels``.
      The first ``prefix_tokens`` tokens of ``logits`` are ignored.
    - ``"official"``: the official code's loss: KL from each region's label to the prediction for that
      region's mean token, weighted by the region's area. ``logits`` is [B, S, K], one row a region
      (``PatchHead`` makes it), and ``labels`` are ``PatchLabels`` with S sources. No token axis, hence no
      prefix.

    Returns a scalar, mean over images; raises UserError for an unknown form or shapes that do not fit.
    """
    if form not in MIXING_FORMS:
        raise UserError(f"patch_mixing has no form {form!r}; choose from {', '.join(MIXING_FORMS)}")
    with no_autocast(logits):
        if form == "official":
            return _region_mixing(full(logits), labels)
        logits_BNK = full(logits.flatten(1, 2) if logits.ndim == 4 else logits)[:, prefix_tokens:]
        if isinstance(labels, PatchLabels):
            _check_places(logits_BNK, labels)
            sources, share = labels.sources.to(logits_BNK.dtype), labels.share.to(logits_BNK.dtype)
            # Labels sum to 1, so CE = logsumexp − <label, logits>: the dense labels are never built.
            agreement_BNS = torch.bmm(logits_BNK, sources.transpose(1, 2))
            held_BN = share.sum(dim=-1)
            cost_BN = torch.logsumexp(logits_BNK, dim=-1) * held_BN - (agreement_BNS * share).sum(dim=-1)
            return cost_BN.sum() / held_BN.sum().clamp_min(1.0)
        expected = logits_BNK.shape[:2] if labels.ndim == 2 else logits_BNK.shape
        if labels.shape != expected:
            raise UserError(
                f"patch labels must be {list(expected)} for these logits, not {list(labels.shape)}"
            )
        target = labels.flatten() if labels.ndim == 2 else full(labels).flatten(0, 1)
        return F.cross_entropy(logits_BNK.flatten(0, 1), target, label_smoothing=label_smoothing)


def _check_places(logits_BNK: Tensor, labels: PatchLabels) -> None:
    if logits_BNK.shape[1] != labels.share.shape[1]:
        raise UserError(
            f"the labels are for {labels.grid[0]}×{labels.grid[1]} patches but the network has "
            f"{logits_BNK.shape[1]} patch tokens; PatchMix's patch_size must be the pixels of one such token"
        )


def _region_mixing(logits_BSK: Tensor, labels: Tensor | PatchLabels) -> Tensor:
    if not isinstance(labels, PatchLabels) or logits_BSK.shape != labels.sources.shape:
        raise UserError(
            "patch_mixing form 'official' takes region logits [B, S, K] and PatchLabels with S sources"
        )
    area_BS = labels.share.mean(dim=1).to(logits_BSK.dtype)
    label_BSK = labels.sources.to(logits_BSK.dtype)
    log_prob = torch.log_softmax(logits_BSK, dim=-1)
    divergence_BS = (torch.xlogy(label_BSK, label_BSK) - label_BSK * log_prob).sum(dim=-1)
    return (divergence_BS * area_BS).sum(dim=1).mean()


class PatchHead(nn.Module):
    """The linear head g of the mixing loss, one for all patches (its parameters belong in the optimizer).

    Args:
        dim: C, channels of a token.
        num_classes: K.
        form: ``"paper"``: logits for each patch, no dropout by default. ``"official"``: logits for each
            region's mean token (weighted by share where Mixup made regions overlap), dropout 0.2 before the
            linear layer.
        dropout: overrides the form's own rate.

    ``forward(tokens [B, N, C], labels)`` returns the loss. Source: papers as in ``patch_mixing``.
    """

    def __init__(self, dim: int, num_classes: int, form: str = "paper", dropout: float | None = None) -> None:
        super().__init__()
        if form not in MIXING_FORMS:
            raise UserError(f"patch_mixing has no form {form!r}; choose from {', '.join(MIXING_FORMS)}")
        if num_classes < 1:
            raise UserError(f"patch_mixing needs num_classes of at least 1, not {num_classes}")
        self.form = form
        self.num_classes = num_classes
        self.dropout = nn.Dropout((0.2 if form == "official" else 0.0) if dropout is None else dropout)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor, labels: PatchLabels) -> Tensor:
        """The mixing loss of these tokens, a scalar."""
        tokens_BNC = (tokens.flatten(1, 2) if tokens.ndim == 4 else tokens).to(self.linear.weight.dtype)
        _check_places(tokens_BNC, labels)
        if self.form == "official":
            share_BNS = labels.share.to(tokens_BNC.dtype)
            # A region of no patches (CutMix drew an empty rectangle) has area 0 and must not divide by it.
            size_BS1 = share_BNS.sum(dim=1).clamp_min(torch.finfo(torch.float32).eps).unsqueeze(-1)
            tokens_BNC = torch.bmm(share_BNS.transpose(1, 2), tokens_BNC) / size_BS1
        return patch_mixing(self.linear(self.dropout(tokens_BNC)), labels, self.form)
