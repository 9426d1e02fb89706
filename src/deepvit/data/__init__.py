"""Data: one string to a data set, its transforms, and the Lightning data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepvit.data.config import AugmentConfig
from deepvit.data.images import ImageSet
from deepvit.data.sources import ImageData, open_data, open_images, table

if TYPE_CHECKING:
    from deepvit.data.datamodule import ImageDataModule

__all__ = ["AugmentConfig", "ImageData", "ImageDataModule", "ImageSet", "open_data", "open_images", "table"]


def __getattr__(name: str) -> Any:
    if name == "ImageDataModule":  # Lightning is imported only when its module is asked for
        from deepvit.data.datamodule import ImageDataModule

        return ImageDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
