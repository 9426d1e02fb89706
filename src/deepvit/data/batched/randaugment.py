"""RandAugment and AutoAugment by timm's policy strings, applied to whole batches of uint8 images.

timm parses the string and so decides which operations there are, how strong and how likely; here each
operation then runs once for all images of the batch that drew it. Differences from timm's image-by-image
form: geometry always samples bilinearly (timm draws bilinear or bicubic), Gaussian blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.data.auto_augment import AutoAugment, RandAugment, auto_augment_transform, rand_augment_transform

from deepvit.data.batched import pixel_ops as px
from deepvit.errors import UserError

Tensor = torch.Tensor


def parse_policy(text: str, fill: tuple[float, float, float], side: int) -> RandAugment | AutoAugment:
    """timm's transform for a policy string; raises ``UserError`` for one that timm does not know.

    ``fill`` (0..255) is the colour beyond the image's edge, ``side`` scales absolute translations.
    """
    hparams = {"translate_const": int(side * 0.45), "img_mean": tuple(round(value) for value in fill)}
    try:
        if text.startswith("rand"):
            return rand_augment_transform(text, hparams)
        if text.startswith("augmix"):
            raise UserError(
                f"randaugment={text!r}: AugMix is not offered; take rand-m9-mstd0.5-inc1 or the like"
            )
        return auto_augment_transform(text, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"randaugment={text!r} is not a policy that timm knows; e.g. rand-m9-mstd0.5-inc1"
        ) from error


class BatchPolicy:
    """A timm policy on batches: ``policy(images uint8 [B, 3, H, W], generator)`` gives new images."""

    def __init__(self, text: str, fill: tuple[float, float, float], side: int) -> None:
        policy = parse_policy(text, fill, side)
        self.fill = torch.tensor(fill)
        self.side = side
        self.rows: Tensor | None = None
        self.weights: Tensor | None = None
        if isinstance(policy, RandAugment):
            self.ops = list(policy.ops)
            self.layers = int(policy.num_layers)
            if policy.choice_weights is not None:
                self.weights = torch.as_tensor(policy.choice_weights, dtype=torch.float32)
        else:
            assert isinstance(policy, AutoAugment)
            self.ops = [op for row in policy.policy for op in row]
            self.layers = max(len(row) for row in policy.policy)
            numbers = iter(range(len(self.ops)))
            padded = [[next(numbers) for _ in row] + [-1] * (self.layers - len(row)) for row in policy.policy]
            self.rows = torch.tensor(padded)
        unknown = {op.name for op in self.ops} - set(_KIND)
        assert not unknown, f"timm has operations that we lack: {unknown}"
        self.names = [op.name for op in self.ops]
        self.probability = torch.tensor([float(op.prob) for op in self.ops])
        self.magnitude = torch.tensor([float(op.magnitude) for op in self.ops])
        self.spread = torch.tensor([float(op.magnitude_std or 0.0) for op in self.ops])
        self.limit = torch.tensor([float(op.magnitude_max or 10.0) for op in self.ops])

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """New images; ``generator`` is on the CPU and decides everything."""
        chosen = self._choose(len(images), generator)
        skip, level, coin = torch.rand(3, *chosen.shape, generator=generator)
        noise = torch.randn(chosen.shape, generator=generator)
        active = (chosen >= 0) & (skip < self.probability[chosen])
        strength = self._strength(chosen, noise, level)
        images = images.clone()
        for layer in range(self.layers):
            groups: dict[str, list[int]] = {}
            numbers = chosen[:, layer].tolist()
            for row in active[:, layer].nonzero().flatten().tolist():
                groups.setdefault(self.names[numbers[row]], []).append(row)
            self._layer(images, groups, strength[:, layer], coin[:, layer])
        return images

    def _choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Number of the operation of each image and layer, int64 [B, layers]; -1: none."""
        if self.rows is not None:
            return self.rows[torch.randint(len(self.rows), (count,), generator=generator)]
        if self.weights is not None:  # timm draws without replacement where operations have weights
            return torch.multinomial(self.weights.expand(count, -1), self.layers, generator=generator)
        return torch.randint(len(self.ops), (count, self.layers), generator=generator)

    def _strength(self, chosen: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Magnitude / 10 with timm's variation: normal (mstd), uniform (mstd infinite), or none."""
        magnitude, spread = self.magnitude[chosen], self.spread[chosen]
        uniform = torch.isinf(spread)
        drawn = torch.where(uniform, level * magnitude, magnitude + noise * spread.masked_fill(uniform, 0.0))
        return torch.minimum(drawn.clamp_(min=0.0), self.limit[chosen]) / 10.0

    def _layer(self, images: Tensor, groups: dict[str, list[int]], strength: Tensor, coin: Tensor) -> None:
        """One operation of each image, in place: all table look-ups together, all geometry together."""
        table_rows: list[int] = []
        tables: list[Tensor] = []
        matrix_rows: list[int] = []
        matrices: list[Tensor] = []
        for name, members in groups.items():
            rows = torch.tensor(members)
            kind, to_argument, run = _KIND[name]
            argument = to_argument(strength[rows], coin[rows])
            if kind == "table":
                table_rows += members
                tables.append(run(images[rows] if name in _NEEDS_PIXELS else rows, argument))
            elif kind == "affine":
                matrix_rows += members
                matrices.append(run(argument, images.shape[-2], images.shape[-1]))
            else:
                images[rows] = run(images[rows], argument)
        if tables:
            rows = torch.tensor(table_rows)
            images[rows] = px.apply_table(images[rows], torch.cat(tables))
        if matrices:
            rows = torch.tensor(matrix_rows)
            images[rows] = px.affine(images[rows], torch.cat(matrices), self.fill)


# Strength (about 0..1) and a uniform number to an operation's argument: the scales of timm's functions.
def _signed(scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda strength, coin: strength * scale * _sign(coin)


def _sign(coin: Tensor) -> Tensor:
    return torch.where(coin > 0.5, -1.0, 1.0)


def _enhance(strength: Tensor, coin: Tensor) -> Tensor:
    return strength * 1.8 + 0.1


def _enhance_increasing(strength: Tensor, coin: Tensor) -> Tensor:
    return (1.0 + strength * 0.9 * _sign(coin)).clamp(min=0.1)


def _whole(scale: float, *, start: int = 0, rising: int = 1, limit: int = 256) -> Callable[..., Tensor]:
    return lambda strength, coin: start + rising * (strength * scale).long().clamp(max=limit)


def _none(strength: Tensor, coin: Tensor) -> Tensor:
    return strength


def _shear_x(factor: Tensor, height: int, width: int) -> Tensor:
    return _matrix(len(factor), {(0, 1): factor})


def _shear_y(factor: Tensor, height: int, width: int) -> Tensor:
    return _matrix(len(factor), {(1, 0): factor})


def _translate_x(share: Tensor, height: int, width: int) -> Tensor:
    return _matrix(len(share), {(0, 2): share * width})


def _translate_y(share: Tensor, height: int, width: int) -> Tensor:
    return _matrix(len(share), {(1, 2): share * height})


def _matrix(count: int, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    matrix = torch.eye(2, 3).repeat(count, 1, 1)
    for (row, column), value in entries.items():
        matrix[:, row, column] = value
    return matrix


def _invert(rows: Tensor, _: Tensor) -> Tensor:
    return px.invert_table(len(rows), rows.device)


def _without_pixels(table: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda rows, argument: table(argument)


def _without_argument(table: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, argument: table(images)


_NEEDS_PIXELS = {"AutoContrast", "Equalize", "Contrast", "ContrastIncreasing"}
_POSTERIZE = _without_pixels(px.posterize_table)
_SOLARIZE = _without_pixels(px.solarize_table)
_BRIGHTNESS = _without_pixels(px.brightness_table)
_KIND: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor], Callable[..., Tensor]]] = {
    "AutoContrast": ("table", _none, _without_argument(px.autocontrast_table)),
    "Equalize": ("table", _none, _without_argument(px.equalize_table)),
    "Invert": ("table", _none, _invert),
    "Posterize": ("table", _whole(4), _POSTERIZE),
    "PosterizeIncreasing": ("table", _whole(4, start=4, rising=-1), _POSTERIZE),
    "PosterizeOriginal": ("table", _whole(4, start=4), _POSTERIZE),
    "Solarize": ("table", _whole(256), _SOLARIZE),
    "SolarizeIncreasing": ("table", _whole(256, start=256, rising=-1), _SOLARIZE),
    "SolarizeAdd": ("table", _whole(110, limit=128), _without_pixels(px.solarize_add_table)),
    "Brightness": ("table", _enhance, _BRIGHTNESS),
    "BrightnessIncreasing": ("table", _enhance_increasing, _BRIGHTNESS),
    "Contrast": ("table", _enhance, px.contrast_table),
    "ContrastIncreasing": ("table", _enhance_increasing, px.contrast_table),
    "Color": ("pixels", _enhance, px.saturation),
    "ColorIncreasing": ("pixels", _enhance_increasing, px.saturation),
    "Desaturate": ("pixels", lambda s, coin: (0.5 - 0.5 * s).clamp(0.0, 1.0), px.saturation),
    "Sharpness": ("pixels", _enhance, px.sharpness),
    "SharpnessIncreasing": ("pixels", _enhance_increasing, px.sharpness),
    "GaussianBlur": ("pixels", lambda s, coin: (0.1 + 1.9 * s).clamp(0.1, 2.0), px.gaussian_blur),
    "GaussianBlurRand": (
        "pixels",
        lambda s, coin: 0.1 + coin * (2.0 * s.clamp(0.0, 1.0) - 0.1),
        px.gaussian_blur,
    ),
    "Rotate": ("affine", _signed(30.0), px.rotation_matrix),
    "ShearX": ("affine", _signed(0.3), _shear_x),
    "ShearY": ("affine", _signed(0.3), _shear_y),
    "TranslateXRel": ("affine", _signed(0.45), _translate_x),
    "TranslateYRel": ("affine", _signed(0.45), _translate_y),
}
