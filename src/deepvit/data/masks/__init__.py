"""Images with masks: one string to a data set for segmentation, and joint transforms. No Lightning."""

from deepvit.data.masks.augmentation import SceneAugment
from deepvit.data.masks.dataset import MaskData
from deepvit.data.masks.palette import palette
from deepvit.data.masks.registry import MASK_SOURCES, open_masks, table
from deepvit.data.masks.sets import MaskSet
from deepvit.data.masks.transforms import mask_transforms

__all__ = [
    "MASK_SOURCES",
    "MaskData",
    "MaskSet",
    "SceneAugment",
    "mask_transforms",
    "open_masks",
    "palette",
    "table",
]
