"""The collapse monitor as a Lightning callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from deepvit.capturing import attention_blocks
from deepvit.collapse.probe import CollapseProbe
from deepvit.collapse.stream import evaluating
from deepvit.errors import UserError
from deepvit.report.spoken import SpokenVerdict, speak
from deepvit.training.sharding import is_sharded, put_together


class CollapseMonitor(pl.Callback):
    """Logs cheap collapse metrics on fixed images every n training steps; warns once when collapse sets in.

    The numbers go to the trainer's loggers under ``collapse/``: attention similarity (also centred),
    entropy, patch similarity, distance from rank one, and of the gradient that reaches the patches its mean's share and the
    norm of the rest, each as the mean over the deeper half of the blocks (``deep``) and in the last one that has it
    (``last``), the count of similar blocks, and ``collapse/seconds``, what the measurement cost. Only the first process
    measures; the others do not wait for it, unless the network is shared out (``fully_shard``) and has to be put together.

    Args:
        probe_images: float images [B, C, h, w], preprocessed as for training; ``None`` takes the first
            training batch.
        every_n_steps: optimizer steps between measurements; also measured before the first step.
        blocks: blocks to measure, as in ``"last:6"``; ``None`` is all.
        attention_images: how many of the images attention is measured on; tokens on all.
        model_attribute: name of the network in the LightningModule; "" is the module itself. By default it is found: the
            one part of the module that takes the images and has attention over tokens.

    Raises:
        UserError: ``every_n_steps`` below 1, the module has no such attribute, no network of this kind or several.
    """

    def __init__(
        self,
        probe_images: Tensor | None = None,
        every_n_steps: int = 500,
        blocks: str | int | Sequence[int] | None = None,
        attention_images: int = 8,
        model_attribute: str | None = None,
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
        if step % self.every_n_steps or step == self._last_step:
            return
        self._last_step = step
        with put_together(pl_module):
            if trainer.is_global_zero:
                self._measure(trainer, pl_module, batch)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        step = trainer.global_step
        if self.probe is None:
            images = self.probe_images if self.probe_images is not None else _images_of(batch)
            # A backward pass of a network that is shared out waits for the other processes, who do not come.
            self.probe = CollapseProbe(
                self._network(pl_module, images), images, 1, self.blocks, self.attention_images,
                gradients=not is_sharded(pl_module),
            )  # fmt: skip
        numbers = self.probe.measure(step)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)

    def _network(self, module: pl.LightningModule, images: Tensor) -> nn.Module:
        if self.model_attribute is None:
            return network_in(module, images.to(module.device))
        network = getattr(module, self.model_attribute, None) if self.model_attribute else module
        if not isinstance(network, nn.Module):
            raise UserError(
                f"model_attribute={self.model_attribute!r}: {type(module).__name__} has no such network; "
                "name the attribute that holds it"
            )
        return unwrapped(network)


def unwrapped(network: nn.Module) -> nn.Module:
    """What ``torch.compile`` and data-parallel wrappers hold: it runs in Python and shares their parameters."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def network_in(module: nn.Module, images: Tensor) -> nn.Module:
    """The network in a LightningModule: ``model`` if it is one, else the one part with attention that takes the images.

    Raises:
        UserError: there is none, or there are several, which are named.
    """
    parts = {name: unwrapped(part) for name, part in module.named_children()}
    found = {name: part for name, part in parts.items() if sees(part, images)}
    if "model" in found or len(found) == 1:
        return found["model"] if "model" in found else next(iter(found.values()))
    if found:
        raise UserError(
            f"{type(module).__name__} holds several networks with attention ({', '.join(found)}): say which by "
            "model_attribute"
        )
    if sees(module, images):
        return module
    raise UserError(
        f"{type(module).__name__} holds no network that takes the images and has attention over tokens (its parts: "
        f"{', '.join(parts) or 'none'}): say where it is by model_attribute"
    )


def sees(part: nn.Module, images: Tensor) -> bool:
    """Whether a part is a network of images with attention, by one forward pass that leaves it as it was."""
    parameter = next((p for p in part.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return False
    try:
        with evaluating(part):
            return bool(attention_blocks(part, images[:1].to(parameter.device, parameter.dtype)))
    except Exception:  # whatever a part says that takes something else than images
        return False


def _images_of(batch: Any) -> Tensor:
    images = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise UserError("the training batch does not start with images; give CollapseMonitor probe_images")
    return images.detach().clone()
