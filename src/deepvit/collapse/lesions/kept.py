"""The images that lesions are done on, kept while a diagnosis goes over all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepvit.collapse.stream import Batch

KEPT_IMAGES = 512
"""With lesions on "auto", at most so many images are kept, spread over those of the diagnosis."""


class Kept:
    """Keeps images and targets: all with ``mode`` "full", none with "off"; ``total`` images are to come, if known."""

    def __init__(self, mode: str, total: int | None) -> None:
        self.mode = mode
        self.every = 1 if mode == "full" or total is None else max(1, -(-total // KEPT_IMAGES))
        self._images: list[Tensor] = []
        self._targets: list[Any] = []
        self.count = 0

    def take(self, batch: Batch) -> None:
        """Keep the chosen ones of a batch."""
        if self.mode == "off" or (self.mode == "auto" and self.count >= KEPT_IMAGES):
            return
        places = [place for place, number in enumerate(batch.numbers) if number % self.every == 0]
        if not places:
            return
        self._images.append(batch.images[places].cpu())
        targets = batch.targets
        if targets is None:
            self._targets.append(None)
        elif isinstance(targets, Tensor):
            self._targets.append(targets[places].cpu())
        else:
            self._targets.append([targets[place] for place in places])
        self.count += len(places)

    def images(self) -> Tensor:
        """All of them [n, 3, h, w]; of batches of several sizes those of the first one's."""
        return torch.cat([self._images[place] for place in self._of_one_size()])

    def _of_one_size(self) -> list[int]:
        wanted = self._images[0].shape[1:]
        return [place for place, images in enumerate(self._images) if images.shape[1:] == wanted]

    def targets(self) -> Any:
        """Their targets in the same order; None where any is missing."""
        kept = [self._targets[place] for place in self._of_one_size()]
        if any(each is None for each in kept):
            return None
        if all(isinstance(each, Tensor) for each in kept) and len({each.shape[1:] for each in kept}) == 1:
            return torch.cat(kept)
        flat = [target for each in kept for target in each]
        if all(isinstance(target, int) for target in flat):
            return torch.tensor(flat)
        return flat
