"""The built-in data set: scikit-learn's handwritten digits, 1,797 grey images of 8×8 pixels, no network."""

from __future__ import annotations

import numpy as np
import torch

from deepvit.data.dataset import ImageData
from deepvit.data.options import NoOptions
from deepvit.data.sets import ArrayImages
from deepvit.data.sources.source import Source
from deepvit.data.split import stratified_split

CLASS_NAMES = [str(digit) for digit in range(10)]
VAL_FRACTION = 0.2


def open_digits(spec: str, options: NoOptions) -> ImageData:
    """Train (1,438) and test (359) digits: one fixed stratified split of 80 : 20, whatever the seed of a run.

    Grey values 0..16 become 0..255. Source: UCI "Optical Recognition of Handwritten Digits", test part, as
    scikit-learn ships it.
    """
    from sklearn.datasets import load_digits  # a second of import time that only this data set needs

    bunch = load_digits()
    array = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    targets = torch.from_numpy(bunch.target.astype(np.int64))
    train, val = stratified_split(targets, VAL_FRACTION, seed=0)
    return ImageData(
        spec,
        ArrayImages(array[train.numpy()], targets[train], "the digits' training part"),
        ArrayImages(array[val.numpy()], targets[val], "the digits' test part"),
        list(CLASS_NAMES),
        "fixed stratified split, 20% for testing",
        mirror=False,
    )


DIGITS = Source(
    name="digits",
    forms=(
        (
            "digits",
            "handwritten digits 0-9, grey 8×8, 1,438 for training and 359 for testing (fixed stratified split)",
        ),
    ),
    needs="nothing (built in)",
    options=NoOptions,
    open=open_digits,
)
