"""Small data sets made for the tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    """A random RGB image, (width, height) = size."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(seed: int, size: tuple[int, int] = (12, 12)) -> bytes:
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_files(root: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def classes(count: int, prefix: str = "", names: tuple[str, ...] = ("ant", "bee", "cat")) -> dict[str, bytes]:
    """``count`` images of each class, below ``prefix``."""
    return {
        f"{prefix}{name}/{i:02}.png": encoded(1000 * n + i + 7 * len(prefix))
        for n, name in enumerate(names)
        for i in range(count)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ with 8 and val/ with 3 images of each of 3 classes."""
    return write_files(tmp_path / "set", classes(8, "train/") | classes(3, "val/"))
