"""What a data string opens to: images to train and to validate on, their classes, and what a person should know."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from deepvit.data.sets import ImageSet
from deepvit.data.shards import StreamImages


@dataclass
class ImageData:
    """A data set for classification: what to train and to validate on, and what the classes are called."""

    spec: str
    train: ImageSet | StreamImages
    val: ImageSet | StreamImages
    class_names: list[str]
    split: str
    """One sentence: how training and validation images were told apart."""
    mirror: bool = True
    """Whether a mirrored image keeps its class (not so for handwriting)."""
    notes: list[str] = field(default_factory=list)
    """What the source has seen, one line each: empty class folders, folders that are not used."""

    in_chans = 3

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    def __str__(self) -> str:
        return (
            f"{self.spec}: {self.num_classes} classes, {len(self.train):,} training and "
            f"{len(self.val):,} validation images ({self.split})"
        )

    def account(self) -> list[str]:
        """What a person should know before training, one line each: ``notes``, and classes that are short of images."""
        if not isinstance(self.train, ImageSet) or not isinstance(self.val, ImageSet):
            return list(self.notes)
        return self.notes + class_notes(self.train.targets, self.val.targets, self.class_names)


UNLEARNT = "without training images, which cannot be learnt"


def short_classes(train: torch.Tensor, val: torch.Tensor, names: list[str]) -> dict[str, list[str]]:
    """Classes that are short of images, by kind: in neither part, in one part only, of a single image.

    ``train`` and ``val`` are labels int64 [n]; those outside 0 .. classes - 1 are not counted here.
    """
    classes = len(names)
    in_train, in_val = (
        torch.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
        for labels in (train, val)
    )
    kinds = {
        "without any image": (in_train == 0) & (in_val == 0),
        UNLEARNT: (in_train == 0) & (in_val > 0),
        "of one image, which trains and is never validated": (in_train == 1) & (in_val == 0),
        "without validation images": (in_train > 1) & (in_val == 0),
        "with one training image only": (in_train == 1) & (in_val > 0),
    }
    chosen = {what: [names[i] for i in which.nonzero().flatten().tolist()] for what, which in kinds.items()}
    return {what: which for what, which in chosen.items() if which}


def class_notes(train: torch.Tensor, val: torch.Tensor, names: list[str]) -> list[str]:
    """``short_classes`` in one line a kind."""
    return [class_note(what, which) for what, which in short_classes(train, val, names).items()]


def class_note(what: str, which: list[str]) -> str:
    """``2 classes without validation images: ant, bee``."""
    return f"{count(len(which), 'class', 'classes')} {what}: {some(which)}"


def count(number: int, one: str, more: str) -> str:
    """``1 class``, ``2 classes``."""
    return f"{number:,} {one if number == 1 else more}"


def some(names: list[str], limit: int = 8) -> str:
    """The names, or the first of them and how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest:,} more" if rest > 0 else "")
