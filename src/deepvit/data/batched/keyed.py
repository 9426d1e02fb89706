"""The keyed loader: batches of (images, targets) that are a pure function of (seed, epoch, rank).

Images and targets are whatever a set and its transform make of them: labels, masks, boxes in a dict. What resuming
needs is a position, (epoch, batch), and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from deepvit.data.batched.mixing import BatchTransform
from deepvit.data.batched.plan import EvalPlan, SizedPlan, TrainPlan
from deepvit.data.batched.seeds import global_seed, seed_of
from deepvit.data.sets import ImageSet
from deepvit.data.transforms import Transform
from deepvit.errors import UserError

Tensor = torch.Tensor
MAX_SKIPPED = 0.05
"""Share of a set's images that may be skipped as unreadable before that is an error (one always may)."""
_TRIES = 100


class Key(NamedTuple):
    """One batch of one epoch."""

    epoch: int
    batch: int
    numbers: Tensor


class Batch(NamedTuple):
    """A batch, the complaints about images that could not be read, and the error that stopped it (else empty)."""

    images: Tensor
    targets: Any
    skipped: list[str]
    error: str = ""


class BatchSource(Protocol):
    """Makes a batch from its key, the same one every time."""

    def batch(self, key: Key) -> Batch:
        """The batch."""


class Skipped:
    """Images that could not be read: each named once, counted, and an error when they are too many.

    Args:
        count: images of the set.
        allowed: whether any may be skipped; else the first is an error.
        share: of the set that may be skipped, at least one image.
    """

    def __init__(self, count: int, *, allowed: bool, share: float = MAX_SKIPPED) -> None:
        self.count, self.allowed, self.share = count, allowed, share
        self._complaints: dict[str, None] = {}

    @property
    def complaints(self) -> list[str]:
        """One line an image, in the order in which they were met."""
        return list(self._complaints)

    def add(self, *complaints: str) -> None:
        """Notes them; raises ``UserError`` when that is one too many."""
        for complaint in complaints:
            if not self.allowed:
                raise UserError(complaint)
            self._complaints[complaint] = None
            if len(self._complaints) > max(1.0, self.share * self.count):
                raise UserError(
                    f"{len(self._complaints)} of {self.count:,} images cannot be read, more than the {self.share:.0%} that "
                    f"may be skipped; the last: {complaint}"
                )


class Decoded:
    """Batches decoded from a set by a transform of (image, target); random ones seeded image by image.

    An image's augmentation depends on (seed, epoch, its number) only, whatever the batch size, the worker
    or the process; and so do the images of a set that makes them anew each epoch.

    Args:
        images: the set.
        transform: (PIL image in RGB, target of the set) to (tensor, target).
        seed: of the transform's draws; None for one that draws nothing.
        unreadable: "stop" hands the error back, "skip" leaves the image out, "replace" takes the next readable
            one of the set, so that training batches keep their size.
        collate: list of targets to the batch's targets; default: torch's (ints to int64 [B], tensors stacked, dicts and
            tuples entry by entry).
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Transform,
        *,
        seed: int | None,
        unreadable: str = "stop",
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        assert unreadable in ("stop", "skip", "replace")
        self.images, self.transform, self.seed, self.unreadable = images, transform, seed, unreadable
        self.collate = collate

    def batch(self, key: Key) -> Batch:
        """Decoded and transformed images; an error is handed back as text, to be raised by the loader."""
        tensors: list[Tensor] = []
        targets: list[Any] = []
        skipped: list[str] = []
        # what evaluation reads (no seed) is the same in every epoch
        images = self.images if self.seed is None else self.images.of_epoch(self.seed, key.epoch)
        for number in key.numbers.tolist():
            for step in range(_TRIES if self.unreadable == "replace" else 1):
                chosen = (number + step) % len(images)
                try:
                    sample = images.image(chosen), images.target(chosen)
                except UserError as error:
                    if self.unreadable == "stop":
                        return Batch(torch.empty(0), None, [], str(error))
                    skipped.append(str(error))
                    continue
                # the key is the image that was asked for: its replacement may be in the batch already
                tensor, target = self._transformed(sample, key.epoch, number)
                tensors.append(tensor)
                targets.append(target)
                break
        if not tensors:
            return Batch(torch.empty(0), None, skipped)
        return Batch(torch.stack(tensors), self.collate(targets), skipped)

    def _transformed(self, sample: tuple[Any, Any], epoch: int, number: int) -> tuple[Tensor, Any]:
        if self.seed is None:
            return self.transform(*sample)
        with global_seed(seed_of(self.seed, epoch, number)):
            return self.transform(*sample)


class Transformed:
    """Another source's batches after a batch transform (Mixup, CutMix, the caller's), seeded by the key."""

    def __init__(self, source: BatchSource, transform: BatchTransform, seed: int, rank: int) -> None:
        self.source, self.transform, self.seed, self.rank = source, transform, seed, rank

    def batch(self, key: Key) -> Batch:
        """The batch with its images and targets replaced."""
        batch = self.source.batch(key)
        if batch.error or not len(batch.images):
            return batch
        # the trailing 1 tells these draws from those of the augmentation
        with global_seed(seed_of(self.seed, key.epoch, self.rank, key.batch, 1)):
            images, targets = self.transform(batch.images, batch.targets)
        return batch._replace(images=images, targets=targets)


class BatchLoader:
    """Iterates over (images, targets); in this process, or with ``workers`` decoding processes.

    A pass begins at the position (epoch, batch) and runs to the end of the epoch; ``set_position`` chooses it, and the
    batches from there are, bit for bit, those of a pass that began at the epoch's start. ``set_epoch`` (which Lightning
    calls through ``batch_sampler``) moves to the start of *another* epoch and leaves a position inside this one alone;
    without either a full pass is followed by the next epoch. ``state_dict`` / ``load_state_dict`` hold the position after
    the last batch handed out. ``skipped`` names images that could not be read.
    """

    def __init__(
        self,
        source: BatchSource,
        plan: TrainPlan | EvalPlan | SizedPlan,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        skipped: Skipped | None = None,
    ) -> None:
        self.source, self.plan, self.pin_memory = source, plan, pin_memory
        self.workers = workers
        self.epoch = 0
        self._skipped = skipped or Skipped(0, allowed=True, share=float("inf"))
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

    @property
    def skipped(self) -> list[str]:
        """Complaints about images that could not be read, each once."""
        return self._skipped.complaints

    def __len__(self) -> int:
        return self.plan.batches

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass; another epoch than the present one begins at its start."""
        if epoch != self.epoch:
            self.set_position(epoch)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """The next pass begins with this batch of this epoch; a number past the epoch's end counts into the next."""
        if epoch < 0 or batch < 0:
            raise ValueError(f"epoch={epoch} and batch={batch} must not be negative")
        past, self._resume_at = divmod(batch, len(self))
        self.epoch, self._given = epoch + past, self._resume_at

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass continues where ``state`` was taken."""
        self.set_position(state["epoch"], state["given"])

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        # A generator: the epoch is read at the first batch, after Lightning has set it.
        start, self._resume_at = self._resume_at, 0
        self._given = start
        epoch = self.plan.epoch(self.epoch)
        self._keys.keys = [Key(self.epoch, i, numbers) for i, numbers in enumerate(epoch) if i >= start]
        batches = self._in_workers() if self.workers else self._here()
        for batch in batches:
            self._given += 1
            try:
                if batch.error:
                    raise UserError(batch.error)
                self._skipped.add(*batch.skipped)
            except UserError:
                batches.close()
                self.close()
                raise
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

    def __init__(self, source: BatchSource) -> None:
        self.source = source

    def __getitem__(self, key: Any) -> Batch:
        return self.source.batch(key)
