"""The Lightning module: a thin training step around the objective, and validation by the task's meter."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.tasks import Task
from deepvit.training.config import TrainConfig
from deepvit.training.objective import Objective
from deepvit.training.optim import build_optimizer, build_schedule, peak_lr


class DivergedError(UserError):
    """The loss is no longer finite; the text names every term."""


class Trainee(lightning.LightningModule):
    """A network under training.

    Args:
        model: the network, from ``[B, 3, H, W]``.
        objective: what is minimised.
        problem: the task, which measures.
        config: the options of the run.
        steps_per_epoch: optimizer steps of one epoch.
        images_per_step: images of one optimizer step, over all devices.
        examples: makes a picture of the first validation batch, for TensorBoard (``Fitting.examples``).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        problem: Task,
        config: TrainConfig,
        steps_per_epoch: int,
        images_per_step: int,
        examples: Callable[[Tensor, Any, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.problem = problem
        decay = config.optim.ema_decay
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True) if decay else None
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.images_per_step = images_per_step
        # A plain attribute, not a submodule: the compiled form shares the parameters under other names.
        self._forward = [torch.compile(model) if config.run.compile else model]
        self.meter: Any = problem.meter()
        self.examples = examples
        self.val_results: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and deployed: the moving average if there is one."""
        return self.ema.module if self.ema is not None else self.model

    # -- training ----------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make dropout and drop path a function of (seed, epoch, batch, rank), so that a resumed run is the same run."""
        words = [self.config.optim.seed, self.current_epoch, batch_idx, self.global_rank]
        state = int(np.random.SeedSequence(words).generate_state(1)[0])
        torch.manual_seed(state)
        random.seed(state)
        np.random.seed(state)

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One batch → the total loss; terms are summed on the device and read every ``log_every`` steps."""
        images, targets = batch[0], batch[1]
        total: Tensor
        total, terms = self.objective(self._forward[0], images, targets)
        # Reading a value waits for the device: on the CPU it is free, elsewhere it is done with the logging.
        if total.device.type == "cpu" or self.global_step % self.config.run.log_every == 0:
            self.check_finite(total, terms)
        for name, value in {"loss": total, **terms}.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        return total

    def check_finite(self, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Stop before the update when the total loss is not finite, naming each term.

        Raises:
            DivergedError: with every term's value and what usually helps.
        """
        if not torch.isfinite(total):
            values = ", ".join(f"{name}={float(value.detach()):.4g}" for name, value in terms.items())
            raise DivergedError(
                f"the loss is not finite at epoch {self.current_epoch + 1}, step {self.global_step} ({values}): "
                "lower --lr, lengthen --warmup_steps, or use --precision 32"
            )

    def take_train_terms(self) -> tuple[dict[str, float], int]:
        """Mean of every loss term since the last call and the number of batches; reading waits for the device."""
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        count = self._count
        self._sums, self._count = {}, 0
        return means, count

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by norm; Lightning refuses to with a fused optimizer in mixed precision, since fp16 may scale within it.

        A fused optimizer is not used with fp16 (``optim.build_optimizer``), so gradients are unscaled here.
        """
        if self.config.optim.clip_grad:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_grad)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer's step, then the moving average of the weights."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step)

    def configure_optimizers(self) -> Any:
        """AdamW and the schedule, stepped once an optimizer step."""
        extra = self.objective if any(True for _ in self.objective.parameters()) else None
        optimizer = build_optimizer(
            self.model, extra, self.config.optim, peak_lr(self.config.optim, self.images_per_step)
        )
        schedule = build_schedule(optimizer, self.config.optim, self.steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """timm's schedules are functions of the number of steps done."""
        scheduler.step_update(num_updates=self.global_step)

    # -- validation --------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> None:
        """Measure the evaluated weights."""
        images, targets = batch[0], batch[1]
        output = self.problem.infer(self.evaluated, images)
        self.meter.update(output, targets)
        if self.examples is not None and batch_idx == 0 and self.trainer.is_global_zero:
            picture = self.examples(images, output, targets)
            for logger in self.loggers:
                logger.experiment.add_image("val/examples", picture, self.global_step)  # type: ignore[attr-defined]

    def on_validation_epoch_end(self) -> None:
        """Reduce over devices and keep the numbers where callbacks find them."""
        self.val_results = {f"val/{key}": float(value) for key, value in self.meter.compute().items()}
        self.meter.reset()
