"""The options of augmentation of images with masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deepvit.errors import UserError


@dataclass(frozen=True)
class SceneAugment:
    """How training images with masks are varied; None means: by the data set (``MaskData.fitted``)."""

    crop_size: int | None = None
    """Side in pixels of the square that is cut out for training (default: what the network takes)."""
    short_side: int | None = None
    """Scale every image and mask first, in training and evaluation, until its shorter side has so many pixels; default: as
    they are."""
    scale: tuple[float, float] | None = None
    """Range of the random scale before the cut (default 0.5 2); 1 1 = none."""
    max_share: float = 0.75
    """Largest share of one class in the cut, void not counted; ten places are tried. 1 = any."""
    hflip: float | None = None
    """Probability of a left-right mirror image (default 0.5; 0 for handwriting)."""
    photometric: float | None = None
    """Strength of random brightness, contrast, saturation (0.5 = up to half more or less) and hue (a seventh of it):
    brightness in every other image, the others together in every other image (default 0.5); 0 = off."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name in ("crop_size", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1 pixel")
        if self.scale is not None and not 0.0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale={self.scale} must be two rising positive numbers")
        if not 0.0 < self.max_share <= 1.0:
            raise UserError(f"max_share={self.max_share} must lie in (0, 1]")
        if self.hflip is not None and not 0.0 <= self.hflip <= 1.0:
            raise UserError(f"hflip={self.hflip} must be between 0 and 1")
        if self.photometric is not None and not 0.0 <= self.photometric <= 1.0:
            raise UserError(f"photometric={self.photometric} must be between 0 and 1")

    def filled(self) -> SceneAugment:
        """With the usual value for every None: of photographs that may be mirrored."""
        return replace(
            self,
            scale=self.scale or (0.5, 2.0),
            hflip=0.5 if self.hflip is None else self.hflip,
            photometric=0.5 if self.photometric is None else self.photometric,
        )
