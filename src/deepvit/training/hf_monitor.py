"""The collapse monitor as a callback of Hugging Face's ``Trainer``; only who asks for it needs transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from deepvit.collapse.probe import CollapseProbe
from deepvit.errors import UserError
from deepvit.report.spoken import SpokenVerdict, speak
from deepvit.runs.hugging_face import PixelValues, tower
from deepvit.training.monitor import unwrapped

try:
    from transformers import TrainerCallback
except ImportError:
    raise UserError(
        "a callback of Hugging Face's Trainer needs the extra: pip install 'deepvit[hf]'"
    ) from None


class CollapseTrainerCallback(TrainerCallback):
    """Logs cheap collapse metrics on fixed images every n steps of ``transformers.Trainer``; warns once about collapse::

        trainer.add_callback(deepvit.CollapseTrainerCallback(trainer, images, every_n_steps=500))

    The numbers are those of :class:`deepvit.CollapseMonitor`. They go through ``trainer.log``, and so into
    ``trainer.state.log_history`` and wherever else the trainer reports to. Only the first process measures.

    Args:
        trainer: whose model is measured and through which the numbers are logged.
        probe_images: float images [B, C, h, w], preprocessed as for training.
        every_n_steps: optimizer steps between measurements; also measured before the first step.
        blocks: blocks to measure, as in ``"last:6"``; ``None`` is all.
        attention_images: how many of the images attention is measured on; tokens on all.

    Raises:
        UserError: ``every_n_steps`` below 1, or a model without a part that takes images.
    """

    def __init__(
        self,
        trainer: Any,
        probe_images: Tensor,
        every_n_steps: int = 500,
        blocks: str | int | Sequence[int] | None = None,
        attention_images: int = 8,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps={every_n_steps} must be at least 1")
        found = tower(unwrapped(trainer.model))
        if found is None:
            raise UserError(f"{type(trainer.model).__name__} has no part that takes images")
        self.trainer, self.every_n_steps = trainer, every_n_steps
        network = PixelValues(found[1], interpolate=False)
        self.probe = CollapseProbe(network, probe_images, 1, blocks, attention_images)

    @property
    def verdict(self) -> SpokenVerdict | None:
        """The verdict of the latest measurement."""
        return None if self.probe.verdict is None else speak(self.probe.verdict)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure before the first step."""
        if state.global_step == 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure when ``every_n_steps`` more optimizer steps were made."""
        if state.global_step % self.every_n_steps == 0:
            self._measure(state)

    def _measure(self, state: Any) -> None:
        if state.is_world_process_zero:
            self.trainer.log(self.probe.measure(state.global_step))
