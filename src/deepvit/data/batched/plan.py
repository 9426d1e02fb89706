"""Which images make up which batch: a pure function of (seed, epoch), shared out among processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from deepvit.data.batched.seeds import seed_of
from deepvit.errors import UserError


class TrainPlan:
    """Shuffled batches of one size, the same number for every process; the short rest is left out.

    Which images are left out changes with the epoch. With fewer images than ``batch_size`` the one batch
    holds all of them (an even number with ``even``, for mixing in pairs).
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1, even: bool = False
    ) -> None:
        share = count // world
        if even:
            share -= share % 2 if share < batch_size else 0
        if share < 1:
            raise UserError(f"{count} training image(s) are too few for {world} process(es)")
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.batch_size = min(batch_size, share)
        self.batches = share // self.batch_size

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Image numbers of each batch of this process."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        order = torch.randperm(self.count, generator=generator)[self.rank :: self.world]
        return list(order[: self.batches * self.batch_size].split(self.batch_size))


class EvalPlan:
    """Every image exactly once, in order.

    On several processes each has the same number of batches (sizes differ by an image or so): a forward pass
    may synchronise buffers, and a process with a batch more would wait for the others for ever.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if count < world:
            raise UserError(f"{count} validation image(s) are too few for {world} processes")
        largest = math.ceil(count / world)
        self.batch_size, self.world = batch_size, world
        self.share = torch.arange(count)[rank::world]
        self.batches = min(math.ceil(largest / batch_size), count // world)

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Image numbers of each batch of this process; the same in every epoch."""
        if self.world == 1:
            return list(self.share.split(self.batch_size))
        return list(self.share.tensor_split(self.batches))


class SizedPlan:
    """Every image exactly once, each batch of images of one size: what a batch holds never changes an image's result.

    Sizes in the order in which they first occur, images of a size in order. On several processes each has the same number of
    batches: some are split for that, and where even that is not enough (an odd number of single images) the numbers
    ``len(sizes)``, ``len(sizes) + 1``, ... are batches of their own: repetitions of the first images that must not
    count (see ``sets.Repeated``).

    Args:
        sizes: of each image; whatever can be compared.
        batch_size: images at most.
        rank, world: this process, and how many there are.
    """

    def __init__(self, sizes: Sequence[object], batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        if len(sizes) < world:
            raise UserError(f"{len(sizes)} validation image(s) are too few for {world} processes")
        self.batch_size, self.world = batch_size, world
        groups: dict[object, list[int]] = {}
        for number, size in enumerate(sizes):
            groups.setdefault(size, []).append(number)
        cut = [list(torch.tensor(numbers).split(batch_size)) for numbers in groups.values()]
        every = [batch for group in cut for batch in group]
        missing = -len(every) % world
        for _ in range(missing):
            largest = max(range(len(every)), key=lambda i: len(every[i]))
            if len(every[largest]) == 1:
                break
            every[largest : largest + 1] = list(every[largest].tensor_split(2))
        self.repeated = -len(every) % world
        every += [torch.tensor([len(sizes) + i]) for i in range(self.repeated)]
        self.share = every[rank::world]
        self.batches = len(self.share)

    def epoch(self, epoch: int) -> list[torch.Tensor]:
        """Image numbers of each batch of this process; the same in every epoch."""
        return list(self.share)
