"""What a data string opens to for segmentation: images with masks, their classes and colours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deepvit.data.inputs import InputSpec
from deepvit.data.sets import ImageSet
from deepvit.data.transforms import Transforms
from deepvit.masks.augmentation import SceneAugment
from deepvit.masks.palette import Colour
from deepvit.masks.sets import MaskSet
from deepvit.masks.transforms import mask_transforms


@dataclass
class MaskData:
    """A data set for segmentation.

    Its sets give ``image(i)`` as upright RGB and ``target(i)`` as a mask uint8 or int32 [H, W] of that size: classes from 0
    on, and ``ignore_index`` where nothing counts.
    """

    spec: str
    train: ImageSet
    val: ImageSet
    class_names: list[str]
    palette: list[Colour]
    """A colour a class."""
    split: str
    """One sentence: how training and validation images were told apart."""
    ignore_index: int = 255
    mirror: bool = True
    """Whether a mirrored image keeps its classes (not so for handwriting)."""
    fresh: bool = False
    """Whether training images are made anew each epoch, and so need not be varied."""
    notes: list[str] = field(default_factory=list)
    """What the source has seen, one line each."""
    faults: list[str] = field(default_factory=list)
    """What must be mended before training, one line each: images without masks, for example."""

    in_chans = 3

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def transforms(self, augment: SceneAugment, input: InputSpec) -> Transforms:
        """``mask_transforms`` with what is not given chosen for this data (see ``SceneAugment``)."""
        return mask_transforms(self.fitted(augment), input, self.ignore_index)

    def fitted(self, augment: SceneAugment) -> SceneAugment:
        """The augmentation with every None filled in: none for scenes made anew, no mirror image of handwriting."""
        hflip = 0.5 if self.mirror else 0.0
        auto = SceneAugment(scale=(1.0, 1.0), hflip=0.0, photometric=0.0) if self.fresh else augment.filled()
        return replace(
            augment,
            scale=augment.scale or auto.scale,
            hflip=(0.0 if self.fresh else hflip) if augment.hflip is None else augment.hflip,
            photometric=auto.photometric if augment.photometric is None else augment.photometric,
        )

    def account(self) -> list[str]:
        """What a person should know before training, one line each."""
        return list(self.notes)

    def __str__(self) -> str:
        return (
            f"{self.spec}: {self.num_classes} classes, {len(self.train):,} training and "
            f"{len(self.val):,} validation images with masks ({self.split})"
        )


__all__ = ["MaskData", "MaskSet"]
