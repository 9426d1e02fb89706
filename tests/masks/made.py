"""Small sets of images with masks, made for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

Array = np.ndarray
COLOURS = np.array(
    [[0, 0, 0], [250, 10, 20], [20, 240, 30], [30, 40, 230], [240, 230, 20], [200, 60, 220]], dtype=np.uint8
)


def blobs(seed: int, size: tuple[int, int] = (24, 32), classes: int = 4) -> Array:
    """A random mask uint8 (height, width) = size of patches of 4 pixels, every class in it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (-(-size[0] // 4), -(-size[1] // 4)))
    coarse.flat[:classes] = range(classes)
    return np.kron(coarse, np.ones((4, 4)))[: size[0], : size[1]].astype(np.uint8)


def save(path: Path, array: Array, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if mode == "P":
        image.putpalette(COLOURS.flatten().tolist())
    image.save(path)
    return path


def pairs(root: Path, parts: dict[str, int], classes: int = 4, **sizes: tuple[int, int]) -> Path:
    """``images/PART/NN.png`` in the colours of ``masks/PART/NN.png``."""
    for part, number in parts.items():
        for i in range(number):
            mask = blobs(100 * len(part) + i, sizes.get("size", (24, 32)), classes)
            save(root / "images" / part / f"{i:02}.png", COLOURS[mask])
            save(root / "masks" / part / f"{i:02}.png", mask)
    return root
