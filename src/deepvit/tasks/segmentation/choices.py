"""What a user chooses for segmentation: in training, and when a trained network is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from deepvit.errors import UserError
from deepvit.masks import SceneAugment


@dataclass
class SegmentOptions:
    """Options of ``deepvit train --task segmentation``."""

    head: Literal["upernet", "linear"] = "upernet"
    """What reads the backbone: upernet (feature pyramid over four depths), or linear (one layer on the last tokens)."""
    channels: int | None = None
    """Channels of the upernet decoder; by default 512, and 64 where crops have at most 96 pixels."""
    decoder_dropout: float = 0.1
    """Dropout before the last layer of the decoder."""
    aux_weight: float = 0.4
    """Weight of the loss of an auxiliary head on the third depth (upernet only); 0 = no such head."""
    frozen: bool = False
    """Train the head alone and keep the backbone as it is: with --head linear, a probe of its features."""
    class_weights: Literal["none", "inverse", "median"] = "none"
    """Weights of the classes in the loss: none, inverse (of their share of the pixels), or median (frequency balancing)."""
    scene: SceneAugment = field(default_factory=SceneAugment)
    """Augmentation of image and mask; what is not set is chosen by the data."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.channels is not None and self.channels < 1:
            raise UserError(f"channels={self.channels} must be at least 1")
        if not 0 <= self.decoder_dropout < 1:
            raise UserError(f"decoder_dropout={self.decoder_dropout} must be in [0, 1)")
        if not 0 <= self.aux_weight < float("inf"):
            raise UserError(f"aux_weight={self.aux_weight} must be 0 or a positive number")

    def facts(self) -> dict[str, Any]:
        """What of it a network is rebuilt from."""
        return {
            "head": self.head,
            "channels": self.channels,
            "decoder_dropout": self.decoder_dropout,
            "aux": self.head == "upernet" and self.aux_weight > 0,
            "short_side": self.scene.short_side,
        }


@dataclass
class InferOptions:
    """How a segmentation network is asked, by ``evaluate`` and ``predict``."""

    inference: Literal["auto", "whole", "slide"] = "auto"
    """Whole images at once, or windows of the training size (slide); auto slides where an image has more than twice its
    pixels, or the network takes no other size."""
    overlap: float = 1 / 3
    """Share of a window that the next one covers too."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Sizes of the image, as multiples of its own, over which probabilities are averaged: 0.5,0.75,1,1.25,1.5,1.75."""
    flip: bool = False
    """Average over the mirror image too."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap={self.overlap} must be in [0, 1)")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise UserError(f"scales={self.scales} must be one or more positive numbers")
