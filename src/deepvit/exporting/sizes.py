"""Which sizes of images a network takes, by trying: few networks say it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from deepvit.runs.hugging_face import first_line

STEPS = (1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64, 112, 128)
"""Images may have to be multiples of a patch or a window; the first of these that goes is taken."""

Size = tuple[int, int]


def other_sizes(network: nn.Module, size: Size, channels: int = 3) -> tuple[int | None, str]:
    """The number of pixels of which images may be any multiple, or None and the network's own reason.

    It is tried on tensors that have a shape and no values, at sizes of which no smaller step would do.
    """
    shapes = copy.deepcopy(network).to("meta")
    reason = ""
    for step in STEPS:
        try:
            with torch.no_grad():
                shapes(torch.empty(2, channels, *another(size, step), device="meta"))
            return step, ""
        except Exception as error:  # each network refuses in its own way
            reason = reason or first_line(error)
    return None, reason


def another(size: Size, step: int) -> Size:
    """A size of other height and width than ``size``, each a prime number of steps, which no larger step divides."""
    height = next_prime(size[0] // step + 1)
    width = next_prime(max(height, size[1] // step) + 1)
    return height * step, width * step


def next_prime(number: int) -> int:
    """The first prime number from ``number`` on, 11 at least."""
    number = max(number, 11)
    while any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number
