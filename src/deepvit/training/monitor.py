"""The collapse monitor as a Lightning callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from deepvit.collapse.probe import CollapseProbe
from deepvit.errors import UserError
from deepvit.report.spoken import SpokenVerdict, speak


class CollapseMonitor(pl.Callback):
    """Logs cheap collapse metrics on fixed images every n training steps; warns once when collapse sets in.

    The numbers go to the trainer's loggers under ``collapse/``: attention similarity (also centred),
    entropy, patch similarity and distance from rank one, each as the mean over the deeper half of the
    blocks (``deep``) and in the last one (``last``), the count of similar blocks, and ``collapse/seconds``,
    what the measurement cost. Only the first process measures; there are no collectives, so other processes
    do not wait for it.

    Args:
        probe_images: float images [B, C, h, w], preprocessed as for training; ``None`` takes the first
            training batch.
        every_n_steps: optimizer steps between measurements; also measured before the first step.
        blocks: blocks to measure, as in ``"last:6"``; ``None`` is all.
        attention_images: how many of the images attention is measured on; tokens on all.
        model_attribute: name of the network in the LightningModule; "" is the module itself.

    Raises:
        UserError: ``every_n_steps`` below 1, or the module has no such attribute.
    """

    def __init__(
        self,
        probe_images: Tensor | None = None,
        every_n_steps: int = 500,
        blocks: str | int | Sequence[int] | None = None,
        attention_images: int = 8,
        model_attribute: str = "model",
    ) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise UserError(f"every_n_steps={every_n_steps} must be at least 1")
        self.probe_images, self.every_n_steps, self.blocks = probe_images, every_n_steps, blocks
        self.attention_images, self.model_attribute = attention_images, model_attribute
        self.probe: CollapseProbe | None = None
        self._last_step = -1

    @property
    def verdict(self) -> SpokenVerdict | None:
        """The verdict of the latest measurement."""
        return None if self.probe is None or self.probe.verdict is None else speak(self.probe.verdict)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure when ``every_n_steps`` more optimizer steps were made; accumulation has batches without."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._last_step or not trainer.is_global_zero:
            return
        self._last_step = step
        if self.probe is None:
            images = self.probe_images if self.probe_images is not None else _images_of(batch)
            self.probe = CollapseProbe(
                self._network(pl_module), images, 1, self.blocks, attention_images=self.attention_images
            )
        numbers = self.probe.measure(step)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)

    def _network(self, module: pl.LightningModule) -> nn.Module:
        network = getattr(module, self.model_attribute, None) if self.model_attribute else module
        if not isinstance(network, nn.Module):
            raise UserError(
                f"model_attribute={self.model_attribute!r}: {type(module).__name__} has no such network; "
                "name the attribute that holds it"
            )
        # torch.compile wraps the network; what it wraps runs in Python and shares its parameters.
        original = getattr(network, "_orig_mod", network)
        assert isinstance(original, nn.Module)
        return original


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise UserError("the training batch does not start with images; give CollapseMonitor probe_images")
    return images.detach().clone()
