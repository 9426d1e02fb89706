"""Images with masks: one string to a data set for segmentation, and joint transforms. No Lightning."""

from deepvit.data.masks.augmentation import SceneAugment
from deepvit.data.masks.checking import MaskCheck, check_masks
from deepvit.data.masks.dataset import MaskData
from deepvit.data.masks.palette import palette
from deepvit.data.masks.registry import MASK_SOURCES, open_masks, open_unchecked, table
from deepvit.data.masks.scan import class_weights
from deepvit.data.masks.sets import MaskSet
from deepvit.data.masks.transforms import mask_transforms

__all__ = [
    "MASK_SOURCES",
    "MaskCheck",
    "MaskData",
    "MaskSet",
    "SceneAugment",
    "check_masks",
    "class_weights",
    "mask_transforms",
    "open_masks",
    "open_unchecked",
    "palette",
    "table",
]
