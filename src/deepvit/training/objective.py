"""What is minimised: the classification loss and any diversity losses, as named terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.data import AugmentConfig
from deepvit.errors import UserError
from deepvit.losses import Diversity, PatchMix


class Objective(nn.Module):
    """Cross-entropy plus weighted diversity losses; returns every term by name.

    Args:
        model: the network that is watched; it is not a child of this module.
        num_classes: width of the classifier (the mixing loss has a head of its own of that width).
        label_smoothing: smoothing of hard labels, in [0, 1); soft labels come smoothed already.
        weights: name → weight of the diversity losses, empty for none (``deepvit.losses.Diversity``).
        options: further arguments of ``Diversity`` (``forms`` and so on).
        mix: patch-aligned CutMix, which the mixing loss needs (:func:`patch_mix`), or None.

    Raises:
        UserError: an unknown loss, a negative weight, a model without patch tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        weights: dict[str, float] | None = None,
        options: dict[str, Any] | None = None,
        mix: PatchMix | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.mix = mix
        self.diversity: Diversity | None = None
        if weights:
            try:
                self.diversity = Diversity(model, weights=weights, num_classes=num_classes, **(options or {}))
            except TypeError as error:
                raise UserError(f"loss_args: {str(error).removeprefix('Diversity.__init__() ')}") from None
        elif options:
            raise UserError(
                "loss_args is given but no loss has a weight: add for example --losses.patch_cosine 1"
            )

    def forward(
        self, network: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the network on the images and return the total loss with its terms.

        Args:
            network: the model, or its compiled form: ``[B, 3, H, W]`` → ``[B, K]``.
            images: normalised, ``[B, 3, H, W]``.
            targets: class indices ``[B]`` or class probabilities ``[B, K]``.

        Returns:
            the total (a scalar) and the unweighted terms by name, ``cross_entropy`` first.
        """
        if self.diversity is None:
            loss = self.classification(network(images), targets)
            return loss, {"cross_entropy": loss}
        patches: Any = targets
        if self.mix is not None:
            mixed = self.mix(images, targets)
            images, targets, patches = mixed.images, mixed.targets, mixed.patches
        with self.diversity.watch():
            logits = network(images)
        terms = self.diversity.terms(patches)
        loss = self.classification(logits, targets)
        return loss + self.diversity.total(terms), {"cross_entropy": loss, **terms}

    def classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in float32 against hard labels (smoothed here) or soft ones."""
        if targets.ndim == 2:
            return F.cross_entropy(logits.float(), targets.to(torch.float32))
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


def patch_mix(model: nn.Module, num_classes: int, img_size: int, augment: AugmentConfig) -> PatchMix:
    """The mixing of a run with the mixing loss: CutMix along the patch grid, and Mixup as in ``augment``.

    It takes the place of the data's own Mixup and CutMix, whose rectangles cut through patches.

    Args:
        model: any timm ViT or Swin; the side of a token of its last block is read from ``feature_info``.
        num_classes: K.
        img_size: side of the images in pixels.
        augment: resolved options; ``cutmix`` 0 means the usual alpha of 1 here, as the loss needs cut images.

    Raises:
        UserError: a model that does not say the size of its tokens, or one that does not divide the images.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise UserError(f"patch_mixing needs the size of a patch, which {type(model).__name__} does not say")
    side = int(info[-1]["reduction"])
    if img_size % side:
        raise UserError(
            f"patch_mixing: patches of {side} pixels do not divide images of {img_size}: change --model.img_size"
        )
    return PatchMix(
        side,
        num_classes,
        cutmix_alpha=augment.cutmix or 1.0,
        mixup_alpha=augment.mixup or 0.0,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        label_smoothing=augment.label_smoothing or 0.0,
    )
