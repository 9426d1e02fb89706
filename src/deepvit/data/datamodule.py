"""The Lightning data module for image classification; its loaders serve any other loop as well."""

from __future__ import annotations

import os
from typing import Any

import lightning
import torch

from deepvit.data.augment import BatchAugment, Normalize
from deepvit.data.cache import Size, Stored, decode, storage_size
from deepvit.data.config import AugmentConfig, resolve
from deepvit.data.images import ImageSet
from deepvit.data.loader import BatchLoader, Decoded, Source, StoredEval, StoredTrain, Transformed
from deepvit.data.mixing import BatchTransform, make_mixing
from deepvit.data.plan import EvalPlan, TrainPlan
from deepvit.data.readers import StreamImages
from deepvit.data.sources import ImageData, open_data
from deepvit.data.split import evenly_spaced
from deepvit.data.stream import StreamLoader
from deepvit.data.transforms import (
    check_interpolation,
    default_crop_pct,
    eval_transform,
    train_transform,
)
from deepvit.errors import UserError

Loader = BatchLoader | StreamLoader


class ImageDataModule(lightning.LightningDataModule):
    """Training and validation batches of one data set for one network.

    Batches are (images float32 [B, 3, H, W] normalised, targets); targets are labels int64 [B], or soft
    float32 [B, classes] in training when Mixup or CutMix is on (``soft_targets``). The batches of epoch e are
    a function of (seed, e, process), so that a resumed run sees what one never stopped would have seen.

    Args:
        data: a data string (see ``open_data``) or an opened data set.
        batch_size: training images a batch and process.
        img_size: the network's input, pixels of the side or (height, width).
        mean, std: of the network's normalisation, for values in 0..1.
        interpolation: how images are scaled.
        crop_pct: share of the image that evaluation keeps; None: all of small images, else 0.9.
        augment: augmentation; None in its fields means by the data set.
        workers: decoding processes; None: as many as there are cores, at most 8 (0 for sets kept in memory).
        seed: of the order and the augmentation.
        eval_batch_size: validation images a batch; None: as in training.
        max_train_images, max_val_images: use only so many, evenly spaced over the classes.
        cache: "auto" keeps small sets in memory, "ram" any set at the network's size, "off" none.
        cache_dir: folder to keep the decoded images of small sets between runs; None writes nothing.
        unreadable: what a validation image that cannot be read does: "raise", or "skip" (it is left out and
            named in the loader's ``skipped``). A training image always raises.
        batch_transform: replaces Mixup and CutMix: any (images, labels) -> (images, targets).
        progress: show a line of progress while decoding.
    """

    def __init__(
        self,
        data: str | ImageData,
        *,
        batch_size: int = 128,
        img_size: int | Size = 224,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        interpolation: str = "bicubic",
        crop_pct: float | None = None,
        augment: AugmentConfig | None = None,
        workers: int | None = None,
        seed: int = 0,
        eval_batch_size: int | None = None,
        max_train_images: int | None = None,
        max_val_images: int | None = None,
        cache: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        unreadable: str = "raise",
        batch_transform: BatchTransform | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise UserError(f"batch_size={min(batch_size, eval_batch_size or 1)} must be at least 1")
        if seed < 0:
            raise UserError(f"seed={seed} must not be negative")
        check_interpolation(interpolation)
        self.data = open_data(data) if isinstance(data, str) else data
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.size: Size = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.mean, self.std, self.interpolation = tuple(mean), tuple(std), interpolation
        self.crop_pct = default_crop_pct(self.size) if crop_pct is None else crop_pct
        if not 0.0 < self.crop_pct <= 1.0:
            raise UserError(f"crop_pct={crop_pct} must lie in (0, 1]")
        self.augment = resolve(augment or AugmentConfig(), side=min(self.size), mirror=self.data.mirror)
        self.batch_transform = batch_transform
        self.workers, self.seed, self.progress = workers, seed, progress
        self.cache_dir = cache_dir
        self.train_set = _limited(self.data.train, max_train_images)
        self.val_set = _limited(self.data.val, max_val_images)
        if cache not in ("auto", "ram", "off"):
            raise UserError(f"cache={cache!r} must be auto, ram or off")
        if unreadable not in ("raise", "skip"):
            raise UserError(f"unreadable={unreadable!r} must be raise or skip")
        self.cache, self.unreadable = cache, unreadable
        self._sizes: dict[str, Size | None] = {}
        self._stored: dict[str, Stored] = {}
        self._loaders: list[BatchLoader] = []

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return self.data.class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.data.num_classes

    @property
    def soft_targets(self) -> bool:
        """Whether training targets are soft, with label smoothing in them already."""
        return self.augment.mixes

    @property
    def label_smoothing(self) -> float:
        """Label smoothing that is left for the loss to do: none when targets are soft."""
        assert self.augment.label_smoothing is not None
        return 0.0 if self.soft_targets else self.augment.label_smoothing

    @property
    def mixing(self) -> BatchTransform | None:
        """What is done to whole training batches: ``batch_transform``, or timm's Mixup when mixing is on."""
        return self.batch_transform or make_mixing(self.augment, self.num_classes, self.batch_size)

    def setup(self, stage: str | None = None) -> None:
        """Decodes what is kept in memory: both parts for "fit" and None, else validation alone.

        Raises ``UserError`` for an image that cannot be read, and for an odd batch size with mixing.
        """
        if stage in (None, "fit"):
            self.mixing  # noqa: B018  (complains about what does not fit)
            self._store("train")
        self._store("val")

    def train_dataloader(self) -> Loader:
        """Shuffled, augmented, full batches of this process."""
        rank, world = self._process()
        if isinstance(self.train_set, StreamImages):
            return StreamLoader(
                self.train_set,
                self._train_transform(),
                self.batch_size,
                training=True,
                workers=self._workers(world),
                seed=self.seed,
                rank=rank,
                world=world,
                batch_transform=self.mixing,
                pin_memory=_pin(),
            )
        plan = TrainPlan(
            len(self.train_set),
            self.batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            even=self.soft_targets,
        )
        stored = self._store("train")
        source: Source
        if stored is None:
            source = Decoded(self.train_set, self._train_transform(), seed=self.seed)
        else:
            augment = BatchAugment(self.augment, self.size, self.mean, self.std, self._scaling())
            source = StoredTrain(stored, augment, self.seed, rank)
        mixing = self.mixing
        if mixing is not None:
            source = Transformed(source, mixing, self.seed, rank)
        workers = self._workers(world) if stored is None else 0
        return self._opened(BatchLoader(source, plan, workers=workers, pin_memory=_pin()))

    def val_dataloader(self) -> Loader:
        """Validation images in order, each exactly once over all processes."""
        rank, world = self._process()
        if isinstance(self.val_set, StreamImages):
            return StreamLoader(
                self.val_set,
                self._eval_transform(),
                self.eval_batch_size,
                training=False,
                workers=self._workers(world),
                seed=self.seed,
                rank=rank,
                world=world,
                pin_memory=_pin(),
            )
        stored = self._store("val")
        if stored is None:
            skip = self.unreadable == "skip"
            source: Source = Decoded(self.val_set, self._eval_transform(), seed=None, skip=skip)
            plan = EvalPlan(len(self.val_set), self.eval_batch_size, rank=rank, world=world)
            return self._opened(BatchLoader(source, plan, workers=self._workers(world), pin_memory=_pin()))
        plan = EvalPlan(len(stored.labels), self.eval_batch_size, rank=rank, world=world)
        loader = BatchLoader(self._stored_eval(stored), plan, pin_memory=_pin())
        loader.skipped += stored.skipped
        return loader

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
        chosen = _limited(self.val_set, images)
        assert isinstance(chosen, ImageSet)
        return eval_loader(
            chosen,
            batch_size or self.eval_batch_size,
            self.size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
        )

    def teardown(self, stage: str | None = None) -> None:
        """Ends the decoding processes of the loaders handed out."""
        while self._loaders:
            self._loaders.pop().close()

    def _opened(self, loader: BatchLoader) -> BatchLoader:
        self._loaders.append(loader)
        return loader

    def stored_size(self, part: str) -> Size | None:
        """Height and width at which the "train" or "val" images are kept in memory, None when they are not."""
        if part not in self._sizes:
            self._sizes[part] = self._storage(self.train_set if part == "train" else self.val_set)
        return self._sizes[part]

    def _storage(self, images: ImageSet | StreamImages) -> Size | None:
        if isinstance(images, StreamImages):
            if self.cache == "ram":
                raise UserError(
                    f"{self.data.spec} is a stream, not to be kept in memory; use cache auto or off"
                )
            return None
        count = len(self.train_set) + len(self.val_set)
        stored = storage_size(images, count, self.size, self.cache)
        if stored is not None and stored != self.size and self._scaling() != self.interpolation:
            return None  # only PIL has that interpolation
        return stored

    def _scaling(self) -> str:
        """The nearest interpolation that torch has for batches."""
        return self.interpolation if self.interpolation in ("bicubic", "bilinear", "nearest") else "bicubic"

    def _store(self, part: str) -> Stored | None:
        size = self.stored_size(part)
        if size is None:
            return None
        if part not in self._stored:
            images = self.train_set if part == "train" else self.val_set
            assert isinstance(images, ImageSet)
            # stored smaller than the network's input: the middle is cut when scaling up
            cut = self.crop_pct if part == "val" and size == self.size else 1.0
            self._stored[part] = decode(
                images,
                size,
                self.interpolation,
                cut,
                on_error=self.unreadable if part == "val" else "raise",
                what=f"{part} images of {self.data.spec}",
                progress=self.progress and self._process()[0] == 0,
                folder=self.cache_dir,
            )
        return self._stored[part]

    def _stored_eval(self, stored: Stored) -> StoredEval:
        return StoredEval(stored, self.size, Normalize(self.mean, self.std), self._scaling(), self.crop_pct)

    def _train_transform(self) -> Any:
        return train_transform(self.augment, self.size, self.mean, self.std, self.interpolation)

    def _eval_transform(self) -> Any:
        return eval_transform(self.size, self.mean, self.std, self.interpolation, self.crop_pct)

    def _process(self) -> tuple[int, int]:
        """Rank and number of processes, from the trainer or torch.distributed."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _workers(self, world: int) -> int:
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        local = int(os.environ.get("LOCAL_WORLD_SIZE", min(world, max(1, torch.cuda.device_count()))))
        return min(8, max(1, cores // max(1, local)))


def eval_loader(
    images: ImageSet,
    batch_size: int,
    size: Size,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str = "bicubic",
    crop_pct: float | None = None,
    workers: int = 0,
) -> BatchLoader:
    """Evaluation batches of any images, labelled or not (-1); unreadable ones are named in ``skipped``."""
    check_interpolation(interpolation)
    cut = default_crop_pct(size) if crop_pct is None else crop_pct
    transform = eval_transform(size, mean, std, interpolation, cut)
    source = Decoded(images, transform, seed=None, skip=True)
    return BatchLoader(source, EvalPlan(len(images), batch_size), workers=workers)


def _limited(images: ImageSet | StreamImages, limit: int | None) -> ImageSet | StreamImages:
    if isinstance(images, StreamImages):
        if limit is not None:
            raise UserError("an image limit needs a data set with random access; wds/ streams have none")
        return images
    chosen = evenly_spaced(len(images), limit)
    return images if chosen is None else images.subset(chosen)


def _pin() -> bool:
    return torch.cuda.is_available()
