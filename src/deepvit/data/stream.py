"""Loader of WebDataset shards: decoded by worker processes, in the order that timm's reader shuffles."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import DataLoader

from deepvit.data.mixing import BatchTransform, global_seed, seed_of
from deepvit.data.readers import StreamImages
from deepvit.errors import UserError

Tensor = torch.Tensor


class StreamLoader:
    """Iterates over (images, targets) of a stream.

    Training: every epoch has the same number of full batches, and its batches are a function of (seed, epoch,
    number of workers). Evaluation: each image once on one process; on several, timm's reader shares out
    whole shards and rounds up, so that a few images may count twice or not at all.
    ``workers`` is at least 1, so that no draw touches this process's random state, and at most the number of
    shards of a process. An interrupted epoch cannot be continued in its middle: resume between epochs.
    """

    def __init__(
        self,
        images: StreamImages,
        transform: Any,
        batch_size: int,
        *,
        training: bool,
        workers: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        batch_transform: BatchTransform | None = None,
        pin_memory: bool = False,
    ) -> None:
        if images.shards < world:
            raise UserError(f"{images.shards} shard(s) are too few for {world} processes; split them further")
        self.images, self.transform, self.batch_size = images, transform, batch_size
        self.training, self.seed, self.rank, self.world = training, seed, rank, world
        self.workers = max(1, min(workers, images.shards // world))
        self.batch_transform, self.pin_memory = batch_transform, pin_memory
        self.epoch = 0
        self.skipped: list[str] = []
        if training and len(self) < 1:
            raise UserError(f"{len(images)} training image(s) are too few for batches of {batch_size}")

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch`` (a ``sampler`` here it would take for torch's)."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.training:
            return len(self.images) // self.world // self.batch_size
        share = len(self.images)
        if self.world > 1:  # timm's reader rounds every worker's share up
            share = self.workers * math.ceil(share / (self.world * self.workers))
        return math.ceil(share / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        seed = seed_of(self.seed, self.epoch) % 2**31
        dataset = self.images.dataset(
            self.transform, training=self.training, batch_size=self.batch_size, seed=seed, epoch=self.epoch
        )
        loader = DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.workers,
            drop_last=self.training,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(seed),  # seeds the workers
        )
        # In training each worker rounds its share up to whole batches, so a pass can exceed the epoch;
        # in evaluation each ends on a short batch, which makes the pass longer than ``len``.
        batches = islice(loader, len(self)) if self.training else self._full(loader)
        for number, (images, labels) in enumerate(batches):
            targets: Any = labels
            if self.batch_transform is not None:
                with global_seed(seed_of(self.seed, self.epoch, self.rank, number, 1)):
                    images, targets = self.batch_transform(images, labels)
            yield images, targets
        self.epoch += 1

    def _full(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same samples in batches of ``batch_size``, the last one shorter."""
        images, labels = torch.empty(0), torch.empty(0, dtype=torch.int64)
        for more_images, more_labels in batches:
            images = torch.cat([images, more_images]) if len(images) else more_images
            labels = torch.cat([labels, more_labels]) if len(labels) else more_labels
            if len(images) >= self.batch_size:
                yield images[: self.batch_size], labels[: self.batch_size]
                images, labels = images[self.batch_size :], labels[self.batch_size :]
        if len(images):
            yield images, labels
