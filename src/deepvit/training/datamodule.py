"""The data room's loaders as Lightning takes them."""

from __future__ import annotations

from typing import Any

import lightning

from deepvit.data import Loaders


class ImageDataModule(Loaders, lightning.LightningDataModule):
    """``Loaders`` with the same arguments, for a Trainer: its process is the trainer's."""

    def process(self) -> tuple[int, int]:
        """Rank and number of processes, of the trainer or of torch.distributed."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return super().process()


class BatchModule(lightning.LightningDataModule):
    """Loaders that a task has made, handed to a Trainer."""

    def __init__(self, loaders: Loaders) -> None:
        super().__init__()
        self.loaders = loaders

    def setup(self, stage: str) -> None:
        """Read what is kept in memory."""
        self.loaders.setup(stage)

    def train_dataloader(self) -> Any:
        """Training batches of this process."""
        return self.loaders.train_dataloader()

    def val_dataloader(self) -> Any:
        """Validation batches of this process."""
        return self.loaders.val_dataloader()

    def teardown(self, stage: str) -> None:
        """End the processes that read images."""
        self.loaders.teardown()
