"""Data: one string to a data set, its transforms, and loaders whose batches are a function of a key. No Lightning."""

from deepvit.data.augmentation import AugmentConfig
from deepvit.data.dataset import ImageData
from deepvit.data.images import read_image
from deepvit.data.inputs import InputSpec
from deepvit.data.loaders import Loaders
from deepvit.data.options import DataOptions
from deepvit.data.sets import ImageSet
from deepvit.data.sources import SOURCES, Source, open_data, open_images, table
from deepvit.data.transforms import Transforms

__all__ = [
    "SOURCES",
    "AugmentConfig",
    "DataOptions",
    "ImageData",
    "ImageSet",
    "InputSpec",
    "Loaders",
    "Source",
    "Transforms",
    "open_data",
    "open_images",
    "read_image",
    "table",
]
