"""Running mean and deviation over images: what makes a pass over any number of images bounded in memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and standard deviation over images of an array of numbers, fed in batches of any size, in float64.

    NaN and infinite entries are left out, each by itself. The deviations are about the running mean (Chan
    et al. 1983), so that numbers that are large beside their spread do not cancel.
    """

    def __init__(self) -> None:
        self._count: Tensor | None = None
        self._mean = torch.empty(0)
        self._squares = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Add the images of ``values`` [B, ...]."""
        values = values.detach().to("cpu", torch.float64)
        real = values.isfinite()
        values = torch.where(real, values, 0.0)
        count = real.sum(0).to(torch.float64)
        mean = values.sum(0) / count.clamp_min(1)
        squares = torch.where(real, values - mean, 0.0).square().sum(0)
        if self._count is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        gap = mean - self._mean
        share = count / total.clamp_min(1)
        self._squares = self._squares + squares + gap.square() * self._count * share
        self._mean = self._mean + gap * share
        self._count = total

    @property
    def images(self) -> int:
        """The largest number of images behind any entry."""
        return 0 if self._count is None else int(self._count.max())

    @property
    def mean(self) -> Tensor:
        """Mean per entry; NaN where no image had a number."""
        assert self._count is not None, "nothing was added"
        return torch.where(self._count > 0, self._mean, torch.nan)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation over images per entry (of the images themselves: divided by their number)."""
        assert self._count is not None, "nothing was added"
        return torch.where(self._count > 0, (self._squares / self._count.clamp_min(1)).sqrt(), torch.nan)
