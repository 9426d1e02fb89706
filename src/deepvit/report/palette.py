"""The colours of the report and of the figures, made once: one diverging ramp, eight series colours.

The ramp is anchored at zero: warm is positive ("alike"), blue is negative, zero is the paper itself, so that
similarity stands out of the page and its absence recedes, in light and in dark. Lightness is monotone along
each arm, which keeps the order readable for every kind of colour vision and in grey print. The series
colours are Okabe and Ito's (2008), darkened a little where the originals are too pale on white.
"""

from __future__ import annotations

STEPS = 24
"""Number of colour steps on each arm of the ramp; zero is a step of its own."""

SERIES_LIGHT = ("#0067a5", "#c94f00", "#00805e", "#a8527f", "#8a6a00", "#2b8fc4", "#6b4fa0", "#4c5661")
SERIES_DARK = ("#5bb4ea", "#ff9550", "#3cc99d", "#e39cc4", "#e2bf4e", "#9ad4f5", "#b9a3ea", "#b8c1cb")

# The page around the charts: paper, a raised surface, lines, three strengths of ink, and the colour of alarm.
_PAGE = {
    "light": {
        "paper": "#fbfcfd", "raised": "#ffffff", "sunk": "#eef2f5", "line": "#d5dce3", "ink": "#121a23",
        "soft": "#465361", "faint": "#66737f", "alarm": "#b3381c", "calm": "#0b6e53", "focus": "#0067a5",
        "region": "#b3381c12",
    },
    "dark": {
        "paper": "#10161d", "raised": "#161e27", "sunk": "#1d2732", "line": "#2f3b48", "ink": "#e9eff5",
        "soft": "#b3bfcb", "faint": "#8d9aa7", "alarm": "#ff9a76", "calm": "#5fd0a9", "focus": "#5bb4ea",
        "region": "#ff9a7617",
    },
}  # fmt: skip

# Anchors from zero outwards, as sRGB hex.
_WARM = {
    "light": ("#f3f5f7", "#f7d9a0", "#f0a050", "#d6552f", "#9c1f3c", "#4d0c36"),
    "dark": ("#1a222c", "#451f45", "#8a2a4a", "#d1503a", "#f49a4a", "#ffe9ae"),
}
_COOL = {
    "light": ("#f3f5f7", "#bcd9ee", "#6fb0dc", "#2f7fba", "#12507f", "#082a4a"),
    "dark": ("#1a222c", "#163a5c", "#1f5f93", "#3a8cc8", "#7cbdea", "#d2ecff"),
}


def _oklab(color: str) -> tuple[float, float, float]:
    """An sRGB hex colour in OKLab (Ottosson 2020), where equal steps look equal."""
    srgb = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb)
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    medium = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def _srgb(lab: tuple[float, float, float]) -> str:
    """The sRGB hex colour of an OKLab triple, clipped to what a screen can show."""
    lightness, a, b = lab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    encoded = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in linear)
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, c))):02x}" for c in encoded)


def _arm(anchors: tuple[str, ...]) -> list[str]:
    """``STEPS`` + 1 colours from zero (the first anchor) to one (the last)."""
    labs = [_oklab(anchor) for anchor in anchors]
    colors = []
    for step in range(STEPS + 1):
        place = step / STEPS * (len(labs) - 1)
        left = min(int(place), len(labs) - 2)
        share = place - left
        a, b = labs[left], labs[left + 1]
        colors.append(_srgb(tuple(x + share * (y - x) for x, y in zip(a, b, strict=True))))  # type: ignore[arg-type]
    return colors


def ramp(mode: str) -> dict[int, str]:
    """Step → hex colour for ``mode`` "light" or "dark", from -STEPS (value -1) to STEPS (value 1)."""
    warm, cool = _arm(_WARM[mode]), _arm(_COOL[mode])
    return {**{-step: cool[step] for step in range(1, STEPS + 1)}, **dict(enumerate(warm))}


def step_of(value: float, limit: float = 1.0) -> int:
    """The ramp step of ``value`` in -limit..limit, clipped beyond it."""
    return round(max(-1.0, min(1.0, value / limit)) * STEPS)


def css_variables(mode: str) -> str:
    """The CSS custom properties of one mode: the page's, ``--h-24`` … ``--h24`` and ``--s0`` … ``--s7``."""
    series = SERIES_LIGHT if mode == "light" else SERIES_DARK
    parts = [f"--{name}:{color}" for name, color in _PAGE[mode].items()]
    parts += [f"--h{step}:{color}" for step, color in sorted(ramp(mode).items())]
    parts += [f"--s{index}:{color}" for index, color in enumerate(series)]
    return ";".join(parts)
