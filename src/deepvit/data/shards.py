"""WebDataset shards: read in order by timm's reader in worker processes, which also shuffles them."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from timm.data import create_dataset
from torch.utils.data import DataLoader, IterableDataset

from deepvit.data.batched.keyed import Skipped
from deepvit.data.batched.mixing import BatchTransform
from deepvit.data.batched.seeds import global_seed, seed_of
from deepvit.data.images import reading, to_rgb
from deepvit.data.transforms import Transform
from deepvit.errors import UserError

Tensor = torch.Tensor


class StreamImages:
    """WebDataset shards of one split, read in order by timm's reader; no random access.

    ``shards`` is how many files can be shared among processes.
    """

    def __init__(self, place: str, split: str, count: int, shards: int) -> None:
        self.place, self.split, self.count, self.shards = place, split, count, shards

    def __len__(self) -> int:
        return self.count

    def reader(self, *, training: bool, batch_size: int, seed: int, epoch: int) -> Any:
        """timm's iterable data set of (PIL image as it is stored, label) for one epoch."""
        try:
            with quiet_reader():
                dataset = create_dataset(
                    "wds/",
                    root=self.place,
                    split=self.split,
                    is_training=training,
                    batch_size=batch_size,
                    seed=seed,
                    num_samples=self.count,
                    input_img_mode="",  # as it is stored; None would be its default, RGB
                )
        except Exception as error:  # addresses and _info.json make it raise anything
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise UserError(
                f"wds/{self.place} could not be opened ({type(error).__name__}: {reason}); check the shards"
            ) from error
        dataset.set_epoch(epoch)
        return dataset


class StreamLoader:
    """Iterates over (images, targets) of a stream.

    Training: every epoch has the same number of full batches, and its batches are a function of (seed, epoch,
    number of workers). Evaluation: each image once on one process; on several, timm's reader shares out
    whole shards and rounds up, so that a few images may count twice or not at all.
    ``workers`` is at least 1, so that no draw touches this process's random state, and at most the number of
    shards of a process. Going on inside an epoch (``set_position``) is exact and reads the batches before it again.
    ``skipped`` names images that could not be read; without ``skip`` the first of them is an error.
    """

    def __init__(
        self,
        images: StreamImages,
        transform: Transform,
        batch_size: int,
        *,
        training: bool,
        workers: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        batch_transform: BatchTransform | None = None,
        pin_memory: bool = False,
        skip: bool = False,
    ) -> None:
        if images.shards < world:
            raise UserError(f"{images.shards} shard(s) are too few for {world} processes; split them further")
        self.images, self.transform, self.batch_size = images, transform, batch_size
        self.training, self.seed, self.rank, self.world = training, seed, rank, world
        self.workers = max(1, min(workers, images.shards // world))
        self.batch_transform, self.pin_memory = batch_transform, pin_memory
        self.epoch = 0
        self._given = self._resume_at = 0
        self._skipped = Skipped(len(images), allowed=skip)
        if training and len(self) < 1:
            raise UserError(f"{len(images)} training image(s) are too few for batches of {batch_size}")

    @property
    def batch_sampler(self) -> SimpleNamespace:
        """Where Lightning looks for ``sampler.set_epoch`` (a ``sampler`` here it would take for torch's)."""
        return SimpleNamespace(sampler=self)

    @property
    def skipped(self) -> list[str]:
        """Complaints about images that could not be read, each once."""
        return self._skipped.complaints

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass; another epoch than the present one begins at its start."""
        if epoch != self.epoch:
            self.set_position(epoch, 0)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """The next pass begins with this batch of this epoch."""
        past, self._resume_at = divmod(batch, len(self))
        self.epoch, self._given = epoch + past, self._resume_at

    def state_dict(self) -> dict[str, int]:
        """Epoch, and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next pass continues where ``state`` was taken."""
        self.set_position(state["epoch"], state["given"])

    def __len__(self) -> int:
        if self.training:
            return len(self.images) // self.world // self.batch_size
        share = len(self.images)
        if self.world > 1:  # timm's reader rounds every worker's share up
            share = self.workers * math.ceil(share / (self.world * self.workers))
        return math.ceil(share / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        start, self._resume_at = self._resume_at, 0
        self._given = start
        seed = seed_of(self.seed, self.epoch) % 2**31
        reader = self.images.reader(
            training=self.training, batch_size=self.batch_size, seed=seed, epoch=self.epoch
        )
        loader = DataLoader(
            _Samples(reader, self.transform),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.pin_memory,
            generator=torch.Generator().manual_seed(seed),  # seeds the workers
        )
        for number, (images, labels) in enumerate(self._batches(loader)):
            # In training each worker rounds its share up to whole batches, so a pass can exceed the epoch.
            if self.training and number >= len(self):
                break
            if number < start:
                continue
            targets: Any = labels
            if self.batch_transform is not None:
                with global_seed(seed_of(self.seed, self.epoch, self.rank, number, 1)):
                    images, targets = self.batch_transform(images, labels)
            self._given = number + 1
            yield images, targets
        self.epoch, self._given = self.epoch + 1, 0

    def _batches(self, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of ``batch_size``: in evaluation each worker ends on a short one, and they are put together."""
        images, labels = torch.empty(0), torch.empty(0, dtype=torch.int64)
        for some in loader:
            self._skipped.add(*some.lost)
            if not len(some.images):
                continue
            images = torch.cat([images, some.images]) if len(images) else some.images
            labels = torch.cat([labels, some.labels]) if len(labels) else some.labels
            while len(images) >= self.batch_size:
                yield images[: self.batch_size], labels[: self.batch_size]
                images, labels = images[self.batch_size :], labels[self.batch_size :]
        if len(images) and not self.training:
            yield images, labels


class _Some(NamedTuple):
    """Samples of one worker, and what it could not read on the way."""

    images: Tensor
    labels: Tensor
    lost: list[str]


class _Samples(IterableDataset[tuple[Any, Any, list[str]]]):
    """timm's reader with our reading of images, in a worker process; what it leaves out is handed on."""

    def __init__(self, reader: Any, transform: Transform) -> None:
        self.reader, self.transform = reader, transform

    def __iter__(self) -> Iterator[tuple[Any, Any, list[str]]]:
        from timm.data.readers import reader_wds

        lost: list[str] = []
        timms = reader_wds._decode

        def decode(sample: dict[str, Any], **options: Any) -> dict[str, Any] | None:
            try:
                with reading(f"{sample.get('__key__')} in {sample.get('__url__')}"):
                    decoded: dict[str, Any] | None = timms(sample, **options)
                    if decoded is not None:
                        decoded["jpg"] = to_rgb(decoded["jpg"])
                    return decoded
            except UserError as error:
                lost.append(str(error))
                return None  # left out

        def note(error: Exception) -> bool:
            lost.append(
                f"a shard cannot be read ({(str(error).splitlines() or [type(error).__name__])[0][:200]})"
            )
            return True

        # timm looks both up when its pipeline starts; it would leave out what it cannot read with a warning at most.
        # Replaced in this process only, a worker that reads these shards and nothing else.
        reader_wds._decode, reader_wds.log_and_continue = decode, note
        for image, label in self.reader:
            yield (*self.transform(image, label), lost[:])
            lost.clear()
        if lost:
            yield None, None, lost


def _collate(samples: list[tuple[Any, Any, list[str]]]) -> _Some:
    lost = [complaint for *_, some in samples for complaint in some]
    good = [(image, label) for image, label, _ in samples if image is not None]
    if not good:
        return _Some(torch.empty(0), torch.empty(0, dtype=torch.int64), lost)
    return _Some(torch.stack([image for image, _ in good]), torch.tensor([int(y) for _, y in good]), lost)


@contextlib.contextmanager
def quiet_reader() -> Iterator[None]:
    """timm warns when there is no ``_info.json``; for a plain folder of shards that is as expected."""
    logger = logging.getLogger("timm.data.readers.reader_wds")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
