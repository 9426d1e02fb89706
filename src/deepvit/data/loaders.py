"""Loaders of one data set for one network: training, validation, and samples for diagnosis. No Lightning here."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import default_collate

from deepvit.data.augmentation import AugmentConfig, resolve
from deepvit.data.batched.augment import BatchAugment
from deepvit.data.batched.keyed import BatchLoader, BatchSource, Decoded, Skipped, Transformed
from deepvit.data.batched.memory import Stored, StoredEval, StoredTrain, decode, storage_size
from deepvit.data.batched.mixing import BatchTransform, make_mixing
from deepvit.data.batched.plan import EvalPlan, SizedPlan, TrainPlan
from deepvit.data.inputs import InputSpec, Size
from deepvit.data.sets import ImageSet, Repeated, size_of
from deepvit.data.shards import StreamImages, StreamLoader
from deepvit.data.sources import open_data
from deepvit.data.split import evenly_spaced
from deepvit.data.transforms import ImageOnly, Transforms, classification_transforms, transform_of
from deepvit.errors import UserError

Loader = BatchLoader | StreamLoader
Unreadable = Literal["stop", "skip"]


class Data(Protocol):
    """What loaders ask of opened data; classification's ``ImageData`` has more."""

    spec: str

    @property
    def train(self) -> ImageSet | StreamImages:
        """What is trained on."""

    @property
    def val(self) -> ImageSet | StreamImages:
        """What is validated on."""

    def account(self) -> list[str]:
        """What a person should know about it, one line each."""


class Loaders:
    """Training and validation batches of one data set for one network.

    Batches are (images float32 [B, 3, H, W] normalised, targets). For classification targets are labels int64 [B], or soft
    float32 [B, classes] in training when Mixup or CutMix is on (``soft_targets``); another task's ``transforms`` make its
    own. The batches of epoch e are a function of (seed, e, process), and each loader's ``set_position`` goes on inside an
    epoch, so that a resumed run sees what one never stopped would have seen.

    Args:
        data: a data string (see ``open_data``) or opened data.
        input: what the network takes.
        batch_size: training images a batch and process.
        augment: augmentation of classification; None in its fields means by the data set.
        transforms: of (image, target) for training and evaluation; None: timm's for ``augment``. With them
            nothing is kept in memory, and batches are not mixed but by ``batch_transform``.
        collate: list of targets to the batch's targets (with ``transforms``).
        workers: decoding processes; None: as many as there are cores, at most 8 (0 for sets kept in memory).
        seed: of the order and the augmentation.
        eval_batch_size: validation images a batch; None: as in training.
        max_train_images: train on only so many, evenly spaced over the classes.
        max_val_images: the same for validation.
        cache: "auto" keeps small sets in memory, "ram" any set at the network's size, "off" none.
        unreadable: what an image that cannot be read does: "stop" is an error that names it; "skip" leaves it out (in
            training the next readable image stands in for it), names it in the loader's ``skipped``, and is an error above
            5% of the images.
        batch_transform: replaces Mixup and CutMix: any (images, targets) -> (images, targets).
        progress: show a line of progress while decoding.
    """

    data: Any  # ``Data``; classification reads its ``mirror`` and ``class_names`` too

    def __init__(
        self,
        data: str | Data,
        *,
        input: InputSpec | None = None,
        batch_size: int = 128,
        augment: AugmentConfig | None = None,
        transforms: Transforms | None = None,
        collate: Callable[[list[Any]], Any] = default_collate,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int | None = None,
        max_train_images: int | None = None,
        max_val_images: int | None = None,
        cache: str = "auto",
        unreadable: Unreadable = "stop",
        batch_transform: BatchTransform | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise UserError(f"batch_size={min(batch_size, eval_batch_size or 1)} must be at least 1")
        if seed < 0:
            raise UserError(f"seed={seed} must not be negative")
        if workers is not None and workers < 0:
            raise UserError(f"workers={workers} must not be negative")
        if cache not in ("auto", "ram", "off"):
            raise UserError(f"cache={cache!r} must be auto, ram or off")
        if unreadable not in ("stop", "skip"):
            raise UserError(f"unreadable={unreadable!r} must be stop or skip")
        if transforms is not None and (augment is not None or cache == "ram"):
            raise UserError("transforms of its own take neither augment nor cache='ram'; leave those out")
        self.data = open_data(data) if isinstance(data, str) else data
        self.input = input or InputSpec()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.workers, self.seed, self.progress = workers, seed, progress
        self.cache, self.unreadable = cache, unreadable
        self.batch_transform, self.collate = batch_transform, collate
        self._own_transforms = transforms
        if transforms is None:
            config, side = augment or AugmentConfig(), min(self.input.hw)
            self.augment = resolve(config, side=side, mirror=self.data.mirror)
        self.train_set = limited(self.data.train, max_train_images)
        self.val_set = limited(self.data.val, max_val_images)
        self.as_process: tuple[int, int] | None = None
        self._sizes: dict[str, Size | None] = {}
        self._stored: dict[str, Stored] = {}
        self._loaders: list[BatchLoader] = []

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return list(self.data.class_names)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def soft_targets(self) -> bool:
        """Whether training targets are soft, with label smoothing in them already."""
        return self._own_transforms is None and self.augment.mixes

    @property
    def label_smoothing(self) -> float:
        """Label smoothing that is left for the loss to do: none when targets are soft."""
        if self._own_transforms is not None or self.soft_targets:
            return 0.0
        assert self.augment.label_smoothing is not None
        return self.augment.label_smoothing

    @property
    def mixing(self) -> BatchTransform | None:
        """What is done to whole training batches: ``batch_transform``, or timm's Mixup when mixing is on."""
        if self.batch_transform is not None or self._own_transforms is not None:
            return self.batch_transform
        return make_mixing(self.augment, self.num_classes, self.batch_size)

    def account(self) -> list[str]:
        """What a person should know before training, one line each: about the data, and how it will be read."""
        lines = list(self.data.account())
        size = self.stored_size("train")
        if size is not None:
            line = (
                f"{len(self.train_set):,} training images are kept in memory at {size[0]}×{size[1]} pixels and augmented "
                "a batch at a time"
            )
            if self.augment.randaugment:
                line += "; there RandAugment samples bilinearly and blurs by a true Gaussian"
            lines.append(line)
        if self.unreadable == "skip":
            lines.append("images that cannot be read are skipped and counted, up to 5% of them")
        return lines

    @property
    def skipped(self) -> list[str]:
        """Complaints about images that could not be read and were left out, by all loaders handed out, each once."""
        return list(dict.fromkeys(text for loader in self._loaders for text in loader.skipped))

    def setup(self, stage: str | None = None) -> None:
        """Decodes what is kept in memory: both parts for "fit" and None, else validation alone.

        Raises ``UserError`` for an image that cannot be read, and for an odd batch size with mixing.
        """
        if stage in (None, "fit"):
            self.mixing  # noqa: B018  (complains about what does not fit)
            self._store("train")
        self._store("val")

    def check(self) -> None:
        """Complain about augmentation that cannot be read or does not fit, before anything is decoded."""
        self.mixing  # noqa: B018
        if self.stored_size("train") is None:
            self.transforms  # noqa: B018
        else:
            self._augment()

    def train_dataloader(self) -> Loader:
        """Shuffled, augmented, full batches of this process."""
        rank, world = self.process()
        skip = self.unreadable == "skip"
        if isinstance(self.train_set, StreamImages):
            return self._stream(self.train_set, training=True)
        stored = self._store("train")
        count = len(self.train_set) if stored is None else len(stored.labels)
        if count < 1:
            raise UserError(f"no training image of {self.data.spec} can be read; mend them")
        plan = TrainPlan(
            count, self.batch_size, seed=self.seed, rank=rank, world=world, even=self.soft_targets
        )
        source: BatchSource
        skipped = Skipped(len(self.train_set), allowed=skip)
        if stored is None:
            unreadable = "replace" if skip else "stop"
            transform = self.transforms.train
            source = Decoded(
                self.train_set, transform, seed=self.seed, unreadable=unreadable, collate=self.collate
            )
        else:
            skipped.add(*stored.skipped)
            source = StoredTrain(stored, self._augment(), self.seed, rank)
        mixing = self.mixing
        if mixing is not None:
            # One draw for a batch is one for the batches of all processes: together they are one batch.
            shared = self.batch_transform is None and self.augment.mixup_mode == "batch"
            source = Transformed(source, mixing, self.seed, 0 if shared else rank)
        workers = self._workers(world) if stored is None else 0
        return self._opened(BatchLoader(source, plan, workers=workers, pin_memory=_pin(), skipped=skipped))

    def val_dataloader(self) -> Loader:
        """Validation images in order, each exactly once over all processes."""
        rank, world = self.process()
        skip = self.unreadable == "skip"
        if isinstance(self.val_set, StreamImages):
            return self._stream(self.val_set, training=False)
        stored = self._store("val")
        skipped = Skipped(len(self.val_set), allowed=skip)
        if stored is None:
            transform, unreadable = self.transforms.evaluate, "skip" if skip else "stop"
            images, plan = self.val_set, self._eval_plan(self.val_set, rank, world)
            if isinstance(plan, SizedPlan) and plan.repeated:
                images = Repeated(images, plan.repeated)
            source: BatchSource = Decoded(
                images, transform, seed=None, unreadable=unreadable, collate=self.collate
            )
            workers = self._workers(world)
            return self._opened(
                BatchLoader(source, plan, workers=workers, pin_memory=_pin(), skipped=skipped)
            )
        plan = EvalPlan(len(stored.labels), self.eval_batch_size, rank=rank, world=world)
        skipped.add(*stored.skipped)
        source = StoredEval(stored, self.input, self._scaling())
        return self._opened(BatchLoader(source, plan, pin_memory=_pin(), skipped=skipped))

    def test_dataloader(self) -> Loader:
        """The validation images: a data set has two parts here."""
        return self.val_dataloader()

    def val_loader_for(self, images: int, *, batch_size: int | None = None) -> BatchLoader:
        """Evaluation batches of ``images`` validation images, evenly spaced over the classes, for diagnosis.

        Unreadable images are left out and named in the loader's ``skipped``. In this process, on one process.
        Raises ``UserError`` for WebDataset streams, which have no random access.
        """
        if isinstance(self.val_set, StreamImages):
            raise UserError(
                f"{self.data.spec} cannot be sampled for diagnosis; give a folder or a tar of images"
            )
        chosen = limited(self.val_set, images)
        assert isinstance(chosen, ImageSet)
        transform = self.transforms.look or self.transforms.evaluate
        source = Decoded(chosen, transform, seed=None, unreadable="skip", collate=self.collate)
        return BatchLoader(source, EvalPlan(len(chosen), batch_size or self.eval_batch_size))

    def teardown(self, stage: str | None = None) -> None:
        """Ends the decoding processes of the loaders handed out."""
        while self._loaders:
            self._loaders.pop().close()

    @property
    def transforms(self) -> Transforms:
        """Of (image, target), for images that are decoded one by one; ``UserError`` for a policy that timm does not know."""
        return self._own_transforms or classification_transforms(self.augment, self.input)

    def stored_size(self, part: str) -> Size | None:
        """Height and width at which the "train" or "val" images are kept in memory, None when they are not."""
        if part not in self._sizes:
            self._sizes[part] = self._storage(self.train_set if part == "train" else self.val_set)
        return self._sizes[part]

    def process(self) -> tuple[int, int]:
        """Rank of this process and how many there are, by torch.distributed, or as ``as_process`` says."""
        if self.as_process is not None:
            return self.as_process
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _eval_plan(self, images: ImageSet, rank: int, world: int) -> EvalPlan | SizedPlan:
        if not self.transforms.whole:
            return EvalPlan(len(images), self.eval_batch_size, rank=rank, world=world)
        sizes = [size_of(images, index) for index in range(len(images))]
        return SizedPlan(sizes, self.eval_batch_size, rank=rank, world=world)

    def _opened(self, loader: BatchLoader) -> BatchLoader:
        self._loaders.append(loader)
        return loader

    def _stream(self, images: StreamImages, *, training: bool) -> StreamLoader:
        rank, world = self.process()
        return StreamLoader(
            images,
            self.transforms.train if training else self.transforms.evaluate,
            self.batch_size if training else self.eval_batch_size,
            training=training,
            workers=self._workers(world),
            seed=self.seed,
            rank=rank,
            world=world,
            batch_transform=self.mixing if training else None,
            pin_memory=_pin(),
            skip=self.unreadable == "skip",
        )

    def _storage(self, images: ImageSet | StreamImages) -> Size | None:
        if isinstance(images, StreamImages):
            if self.cache == "ram":
                raise UserError(
                    f"{self.data.spec} is a stream, not to be kept in memory; use cache auto or off"
                )
            return None
        if self._own_transforms is not None:
            return None
        count = len(self.train_set) + len(self.val_set)
        stored = storage_size(images, count, self.input.hw, self.cache)
        if stored is not None and stored != self.input.hw and self._scaling() != self.input.interpolation:
            return None  # only PIL has that interpolation
        return stored

    def _augment(self) -> BatchAugment:
        return BatchAugment(self.augment, self.input.hw, self.input.mean, self.input.std, self._scaling())

    def _scaling(self) -> str:
        """The nearest interpolation that torch has for batches."""
        wanted = self.input.interpolation
        return wanted if wanted in ("bicubic", "bilinear", "nearest") else "bicubic"

    def _store(self, part: str) -> Stored | None:
        size = self.stored_size(part)
        if size is None:
            return None
        if part not in self._stored:
            images = self.train_set if part == "train" else self.val_set
            assert isinstance(images, ImageSet)
            # stored smaller than the network's input: the middle is cut when scaling up
            cut = self.input.crop if part == "val" and size == self.input.hw else 1.0
            self._stored[part] = decode(
                images,
                size,
                self.input.interpolation,
                cut,
                skipped=Skipped(len(images), allowed=self.unreadable == "skip"),
                what=f"{part} images of {self.data.spec}",
                progress=self.progress and self.process()[0] == 0,
            )
        return self._stored[part]

    def _workers(self, world: int) -> int:
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local = int(os.environ.get("LOCAL_WORLD_SIZE", min(world, max(1, torch.cuda.device_count()))))
        return min(8, max(1, cores // max(1, local)))


def eval_loader(images: ImageSet, batch_size: int, spec: InputSpec, *, workers: int = 0) -> BatchLoader:
    """Evaluation batches of any images, labelled or not (-1); unreadable ones are named in ``skipped``."""
    source = Decoded(images, ImageOnly(transform_of(spec)), seed=None, unreadable="skip")
    return BatchLoader(source, EvalPlan(len(images), batch_size), workers=workers)


def limited(images: ImageSet | StreamImages, limit: int | None) -> ImageSet | StreamImages:
    """The set, or ``limit`` of its images evenly spaced over the classes."""
    if isinstance(images, StreamImages):
        if limit is not None:
            raise UserError("an image limit needs a data set with random access; wds/ streams have none")
        return images
    chosen = evenly_spaced(len(images), limit)
    return images if chosen is None else images.subset(chosen)


def _pin() -> bool:
    return torch.cuda.is_available()
