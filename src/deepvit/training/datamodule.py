"""The data room's loaders as Lightning takes them."""

from __future__ import annotations

import lightning

from deepvit.data.loaders import Loaders


class ImageDataModule(Loaders, lightning.LightningDataModule):
    """``Loaders`` with the same arguments, for a Trainer: its process is the trainer's."""

    def process(self) -> tuple[int, int]:
        """Rank and number of processes, of the trainer or of torch.distributed."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return super().process()
