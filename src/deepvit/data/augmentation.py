"""The options of augmentation, and the defaults that fit a data set's image size."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from deepvit.errors import UserError

SMALL_SIDE = 96
"""Images up to this side in pixels are small: cropped by a shift, augmented gently, kept in memory."""


@dataclass
class AugmentConfig:
    """How training images are varied; None means: by the data set (see ``resolve``)."""

    crop_padding: int | None = None
    """Shift the image by up to this many pixels of the training size, black beyond its edge; 0 = no shift."""
    crop_scale: tuple[float, float] | None = None
    """Cut out a part with this share of the area and scale it up (random resized crop); 1 1 = no cut."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width : height of the part that crop_scale cuts out."""
    hflip: float | None = None
    """Probability of a left-right mirror image."""
    vflip: float = 0.0
    """Probability of an upside-down mirror image."""
    randaugment: str | None = None
    """timm's policy string for RandAugment or AutoAugment, e.g. rand-m9-mstd0.5-inc1; "" = none."""
    color_jitter: float | None = None
    """Strength of random brightness, contrast and saturation; off beside randaugment unless given."""
    random_erasing: float | None = None
    """Probability of erasing a rectangle."""
    erasing_mode: str = "pixel"
    """What an erased rectangle holds: pixel (noise), rand (one random colour) or const (the mean)."""
    erasing_count: int = 1
    """At most this many erased rectangles an image."""
    mixup: float | None = None
    """Alpha of Mixup (blends pairs of images and labels); 0 = off."""
    cutmix: float | None = None
    """Alpha of CutMix (pastes a rectangle of another image, labels by area); 0 = off."""
    mixup_prob: float = 1.0
    """Probability that Mixup or CutMix is applied to a batch (or image, see mixup_mode)."""
    mixup_switch_prob: float = 0.5
    """Probability of CutMix rather than Mixup when both are on."""
    mixup_mode: str = "batch"
    """What draws its own mixing: the whole batch, each pair, or each elem(ent)."""
    label_smoothing: float | None = None
    """Share of the label spread evenly over all classes."""

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, which gives soft labels."""
        return bool((self.mixup or 0.0) > 0.0 or (self.cutmix or 0.0) > 0.0)


_OFF = AugmentConfig(
    crop_padding=0,
    crop_scale=(1.0, 1.0),
    hflip=0.0,
    randaugment="",
    color_jitter=0.0,
    random_erasing=0.0,
    mixup=0.0,
    cutmix=0.0,
    label_smoothing=0.0,
)


def no_augmentation() -> AugmentConfig:
    """Every augmentation off."""
    return replace(_OFF)


def resolve(config: AugmentConfig, *, side: int, mirror: bool) -> AugmentConfig:
    """Fills every None by the shorter training side in pixels, and checks the ranges; raises ``UserError``.

    Small images (side ≤ 96) that may be mirrored: shift by an eighth of the side, mirror, a gentle
    RandAugment and erasing, label smoothing 0.1, no mixing. Handwriting (``mirror`` false): a shift by a
    sixteenth of a small side and nothing else. Larger images: the DeiT recipe (random resized crop 0.08 to
    1, mirror, rand-m9-mstd0.5-inc1, erasing 0.25, Mixup 0.8, CutMix 1, label smoothing 0.1). Colour jitter
    is 0.4 where RandAugment is off and images may be mirrored, as in timm.
    """
    small = side <= SMALL_SIDE
    if not mirror:
        auto = replace(_OFF, crop_padding=max(1, side // 16) if small else 0)
    elif small:
        auto = replace(
            _OFF,
            crop_padding=max(1, side // 8),
            hflip=0.5,
            randaugment="rand-m6-n1-mstd0.5-inc1",
            random_erasing=0.1,
            label_smoothing=0.1,
        )
    else:
        auto = AugmentConfig(0, (0.08, 1.0), hflip=0.5, randaugment="rand-m9-mstd0.5-inc1", color_jitter=0.0,
                             random_erasing=0.25, mixup=0.8, cutmix=1.0, label_smoothing=0.1)  # fmt: skip
    if config.crop_scale is not None and config.crop_padding is None:
        auto = replace(auto, crop_padding=0)
    if config.crop_padding is not None and config.crop_scale is None:
        auto = replace(auto, crop_scale=(1.0, 1.0))
    policy = auto.randaugment if config.randaugment is None else config.randaugment
    if mirror and not policy:
        auto = replace(auto, color_jitter=0.4)
    missing = {f.name: getattr(auto, f.name) for f in fields(config) if getattr(config, f.name) is None}
    resolved = replace(config, **missing)
    _check(resolved)
    return resolved


def _check(config: AugmentConfig) -> None:
    def number(name: str) -> float:
        value = getattr(config, name)
        assert value is not None
        return float(value)

    probabilities = ("hflip", "vflip", "random_erasing", "mixup_prob", "mixup_switch_prob", "label_smoothing")
    for name in probabilities:
        if not 0.0 <= number(name) <= 1.0:
            raise UserError(f"{name}={getattr(config, name)} must be between 0 and 1")
    for name in ("color_jitter", "mixup", "cutmix", "crop_padding"):
        if number(name) < 0.0:
            raise UserError(f"{name}={getattr(config, name)} must not be negative (0 = off)")
    if config.crop_scale is None or not 0.0 < config.crop_scale[0] <= config.crop_scale[1] <= 1.0:
        raise UserError(f"crop_scale={config.crop_scale} must be two rising numbers in (0, 1]")
    if not 0.0 < config.crop_ratio[0] <= config.crop_ratio[1]:
        raise UserError(f"crop_ratio={config.crop_ratio} must be two rising positive numbers")
    if config.crop_scale != (1.0, 1.0) and config.crop_padding:
        raise UserError("crop_padding and crop_scale exclude each other; set one of them to its off value")
    if config.erasing_mode not in ("pixel", "rand", "const"):
        raise UserError(f"erasing_mode={config.erasing_mode!r} must be pixel, rand or const")
    if config.erasing_count < 1:
        raise UserError(f"erasing_count={config.erasing_count} must be at least 1")
    if config.mixup_mode not in ("batch", "pair", "elem"):
        raise UserError(f"mixup_mode={config.mixup_mode!r} must be batch, pair or elem")
