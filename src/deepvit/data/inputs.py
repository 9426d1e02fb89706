"""What a network takes: the size of its images and how their values are normalised."""

from __future__ import annotations

from dataclasses import dataclass

from deepvit.data.augmentation import SMALL_SIDE
from deepvit.errors import UserError

Size = tuple[int, int]
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")


@dataclass(frozen=True)
class InputSpec:
    """The images that a network takes; raises ``UserError`` for what cannot be meant.

    Attributes:
        size: (height, width) in pixels; a single number is taken for both.
        mean, std: of the normalisation, by channel, for values in 0..1.
        interpolation: how images are scaled, by PIL's name.
        crop_pct: share of the image that evaluation keeps; None: all of a small image, else 0.9 (see ``crop``).
    """

    size: int | Size = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float | None = None

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        size = self.size
        object.__setattr__(self, "size", (size, size) if isinstance(size, int) else (size[0], size[1]))
        if min(self.height, self.width) < 1:
            raise UserError(
                f"an image size of {self.height}×{self.width} pixels leaves nothing; give at least 1"
            )
        if len(self.mean) != len(self.std) or not all(value > 0.0 for value in self.std):
            raise UserError(
                f"mean={self.mean} and std={self.std} must be as many numbers, those of std above 0"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation={self.interpolation!r} is unknown; take one of {', '.join(INTERPOLATIONS)}"
            )
        if not 0.0 < self.crop <= 1.0:
            raise UserError(f"crop_pct={self.crop_pct} must lie in (0, 1]")

    @property
    def hw(self) -> Size:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.size if isinstance(self.size, int) else self.size[1]

    @property
    def crop(self) -> float:
        """Share of the image that evaluation keeps: ``crop_pct``, or all of a small image and 0.9 (DeepViT's) of others."""
        if self.crop_pct is not None:
            return self.crop_pct
        return 1.0 if max(self.hw) <= SMALL_SIDE else 0.9
