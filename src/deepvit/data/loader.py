"""Loaders: batches of (images, targets) that are a pure function of (seed, epoch, rank)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from deepvit.data.augment import BatchAugment, Normalize, upscale
from deepvit.data.cache import Stored
from deepvit.data.images import ImageSet
from deepvit.data.mixing import BatchTransform, global_seed, seed_of
from deepvit.data.plan import EvalPlan, TrainPlan
from deepvit.errors import UserError

Tensor = torch.Tensor
Size = tuple[int, int]


class Key(NamedTuple):
    """One batch of one epoch."""

    epoch: int
    batch: int
    numbers: Tensor


class Batch(NamedTuple):
    """A batch, the complaints about images left out of it, and the error that stopped it (else empty)."""

    images: Tensor
    targets: Any
    skipped: list[str]
    error: str = ""


class Source(Protocol):
    """Makes a batch from its key, the same one every time."""

    def batch(self, key: Key) -> Batch:
        """The batch."""


class StoredTrain:
    """Training batches out of memory."""

    def __init__(self, stored: Stored, augment: BatchAugment, seed: int, rank: int) -> None:
        self.stored, self.augment, self.seed, self.rank = stored, augment, seed, rank

    def batch(self, key: Key) -> Batch:
        """Augmented images; draws come from a generator of their own, seeded by the key."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, key.epoch, self.rank, key.batch))
        images = self.augment(self.stored.images[key.numbers], generator)
        return Batch(images, self.stored.labels[key.numbers], [])


class StoredEval:
    """Evaluation batches out of memory: normalised, and scaled up when they are stored below ``size``."""

    def __init__(
        self, stored: Stored, size: Size, normalize: Normalize, interpolation: str, crop_pct: float
    ) -> None:
        self.stored, self.size, self.normalize = stored, size, normalize
        self.interpolation, self.crop_pct = interpolation, crop_pct

    def batch(self, key: Key) -> Batch:
        """Images and labels in order."""
        images = self.normalize(self.stored.images[key.numbers])
        if images.shape[-2:] != self.size:
            images = upscale(images, self.size, self.interpolation, self.crop_pct)
        return Batch(images, self.stored.labels[key.numbers], [])


class Decoded:
    """Batches decoded from their source by a transform of PIL images; random ones seeded image by image.

    An image's augmentation depends on (seed, epoch, its number) only, whatever the batch size, the worker
    or the process. ``skip``: leave unreadable images out instead of raising.
    """

    def __init__(self, images: ImageSet, transform: Any, *, seed: int | None, skip: bool = False) -> None:
        self.images, self.transform, self.seed, self.skip = images, transform, seed, skip

    def batch(self, key: Key) -> Batch:
        """Decoded and transformed images; an error is handed back as text, to be raised by the loader."""
        tensors, kept, skipped = [], [], []
        for number in key.numbers.tolist():
            try:
                image = self.images.image(number)
            except UserError as error:
                if not self.skip:
                    return Batch(torch.empty(0), torch.empty(0), [], str(error))
                skipped.append(str(error))
                continue
            if self.seed is None:
                tensors.append(self.transform(image))
            else:
                with global_seed(seed_of(self.seed, key.epoch, number)):
                    tensors.append(self.transform(image))
            kept.append(number)
        images = torch.stack(tensors) if tensors else torch.empty(0)
        return Batch(images, self.images.targets[kept], skipped)


class Transformed:
    """Another source's batches after a batch transform (Mixup, CutMix, the caller's), seeded by the key."""

    def __init__(self, source: Source, transform: BatchTransform, seed: int, rank: int) -> None:
        self.source, self.transform, self.seed, self.rank = source, transform, seed, rank

    def batch(self, key: Key) -> Batch:
        """The batch with its images and targets replaced."""
        batch = self.source.batch(key)
        if batch.error:
            return batch
        # the trailing 1 tells these draws from those of the augmentation
        with global_seed(seed_of(self.seed, key.epoch, self.rank, key.batch, 1)):
            images, targets = self.transform(batch.images, batch.targets)
        return batch._replace(images=images, targets=targets)


class BatchLoader:
    """Iterates over (images, targets); in this process, or with ``workers`` decoding processes.

    Epochs: ``set_epoch(e)`` chooses the epoch (Lightning calls it through ``batch_sampler``); without it a
    full pass is followed by the next epoch. ``state_dict`` / ``load_state_dict`` continue in the middle of an
    epoch with the batch after the last one handed out. ``skipped`` collects complaints about images left out.
    """

    def __init__(
        self, source: Source, plan: TrainPlan | EvalPlan, *, workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.source, self.plan, self.pin_memory = source, plan, pin_memory
        self.workers = workers
        self.epoch = 0
        self.skipped: list[str] = []
        self._given = 0
        self._resume_at = 0
        self._keys = _Keys()
        self._pool: DataLoader[Batch] | None = None

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch`` (a ``sampler`` here it would take for torch's)."""
        return SimpleNamespace(sampler=self)

    @property
    def batch_size(self) -> int:
        """Images in a full batch."""
        return max(len(numbers) for numbers in self.plan.epoch(0))

    def __len__(self) -> int:
        return self.plan.batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass; another epoch than the present one begins at its start."""
        if epoch != self.epoch:
            self.epoch, self._given, self._resume_at = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass continues where ``state`` was taken."""
        self.epoch, self._resume_at = state["epoch"], state["given"]
        if self._resume_at >= len(self):
            self.epoch, self._resume_at = self.epoch + 1, 0
        self._given = self._resume_at

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        # A generator: the epoch is read at the first batch, after Lightning has set it.
        start, self._resume_at = self._resume_at, 0
        self._given = start
        self._keys.keys = [
            Key(self.epoch, i, numbers) for i, numbers in enumerate(self.plan.epoch(self.epoch)) if i >= start
        ]
        batches = self._in_workers() if self.workers else self._here()
        for batch in batches:
            self._given += 1
            if batch.error:
                batches.close()
                self.close()
                raise UserError(batch.error)
            self.skipped += batch.skipped
            if len(batch.images):
                yield batch.images, batch.targets
        self.epoch, self._given = self.epoch + 1, 0

    def close(self) -> None:
        """Ends the worker processes, if there are any; another pass would start new ones."""
        self._pool = None  # the last reference: torch's iterator then stops its processes

    def _here(self) -> Generator[Batch, None, None]:
        for key in self._keys.keys:
            batch = self.source.batch(key)
            if self.pin_memory and not batch.error:
                batch = batch._replace(images=batch.images.pin_memory())
            yield batch

    def _in_workers(self) -> Generator[Batch, None, None]:
        if self._pool is None:
            self._pool = DataLoader(
                _Batches(self.source),
                sampler=self._keys,
                batch_size=None,
                num_workers=self.workers,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # else each epoch would draw from the global one
            )
        yield from self._pool


class _Keys(Sampler[Key]):
    """The keys of the present pass; a list that the loader replaces."""

    def __init__(self) -> None:
        self.keys: list[Key] = []

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)


class _Batches(Dataset[Batch]):
    """A source as a data set whose items are whole batches."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> Batch:
        return self.source.batch(key)
