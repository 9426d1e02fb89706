"""Images with masks: one string to a data set for segmentation, and joint transforms. No Lightning."""

from deepvit.masks.augmentation import SceneAugment
from deepvit.masks.checking import MaskCheck, check_masks
from deepvit.masks.dataset import MaskData
from deepvit.masks.palette import palette
from deepvit.masks.registry import MASK_SOURCES, has_masks, open_masks, open_unchecked, table
from deepvit.masks.scan import class_weights
from deepvit.masks.sets import MaskSet
from deepvit.masks.transforms import mask_transforms

__all__ = [
    "MASK_SOURCES",
    "MaskCheck",
    "MaskData",
    "MaskSet",
    "SceneAugment",
    "check_masks",
    "class_weights",
    "has_masks",
    "mask_transforms",
    "open_masks",
    "open_unchecked",
    "palette",
    "table",
]
