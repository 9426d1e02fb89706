"""The Lightning module: a thin training step around the objective, and validation by the task's meter."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from deepvit.layers.entries import entries, learn_entries, set_entries
from deepvit.tasks import Task
from deepvit.training.bad_step import keep_bad, seed_step
from deepvit.training.config import TrainConfig
from deepvit.training.guards import HELP, DivergedError, Guard, Policy, attention_in_float32, finite_or_raise
from deepvit.training.loggers import show_picture
from deepvit.training.objective import Objective
from deepvit.training.optim import build_optimizer, build_schedule, peak_lr
from deepvit.training.processes import every_process, largest
from deepvit.training.sharding import put_together, shard, whole
from deepvit.training.strategy import Sharded


class Trainee(lightning.LightningModule):
    """A network under training.

    Args:
        model: the network, from ``[B, 3, H, W]``.
        objective: what is minimised.
        problem: the task, which measures.
        config: the options of the run.
        steps_per_epoch: optimizer steps of one epoch.
        images_per_step: images of one optimizer step, over all devices.
        out: run folder, where a step with numbers that are not finite is kept; None keeps nothing.
        examples: makes a picture of the first validation batch, for the loggers (``Fitting.examples``).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        problem: Task,
        config: TrainConfig,
        steps_per_epoch: int,
        images_per_step: int,
        out: Path | None = None,
        examples: Callable[[Tensor, Any, Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.problem = problem
        decay = config.optim.ema_decay
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True) if decay else None
        if self.ema is not None:
            self.ema.requires_grad_(False)  # DistributedDataParallel would wait for gradients of it
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.images_per_step = images_per_step
        # A plain attribute, not a submodule: the compiled form shares the parameters under other names.
        self._forward = [torch.compile(model) if config.run.compile else model]
        self._to_learn = config.run.compile
        self.meter: Any = problem.meter()
        self.examples = examples
        self.val_results: dict[str, float] = {}
        self.out = out
        self.guard = Guard(Policy.read(config.optim.on_nonfinite))
        self.batch: tuple[Any, Any] | None = None
        self.batch_numbers: list[int] = []
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._after_mixing: Callable[[], None] | None = None

    def configure_model(self) -> None:
        """With ``--strategy fsdp``, share out the network, its moving average and the losses' own parts."""
        strategy = self.trainer.strategy
        if not isinstance(strategy, Sharded):
            return
        mesh = strategy.device_mesh["data_parallel"]
        # Losses of attention maps compute with a block's weights after its forward pass.
        again = self.objective.diversity is None
        shard(self.model, mesh, gather_again=again)
        if self.ema is not None:
            self.ema.foreach = (
                False  # running statistics are not shared out, and torch takes no mixture at once
            )
            shard(self.ema.module, mesh)
        for part in self.objective.parts():
            shard(part, mesh)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and deployed: the moving average if there is one."""
        if self.ema is None:
            return self.model
        average: nn.Module = self.ema.module
        set_entries(average, entries(self.model))  # no part of the state, which alone is averaged
        return average

    # -- training ----------------------------------------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Make what is drawn a function of (seed, epoch, batch, rank), so that a resumed run is the same run."""
        self._after_mixing = seed_step(
            self.config.optim.seed, self.current_epoch, batch_idx, self.global_rank
        )
        self.batch = batch[0], batch[1]
        if batch_idx % self.config.optim.accumulate == 0:
            self.batch_numbers = []
        self.batch_numbers.append(batch_idx)

    def training_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """One batch → the total loss; terms are summed on the device and read every ``log_every`` steps."""
        images, targets = batch[0], batch[1]
        if self._to_learn:  # compiled layers do not notice of how many tokens their statistics are
            learn_entries(self.model, images)
            self._to_learn = False
        total: Tensor
        total, terms = self.objective(self._forward[0], images, targets, self._after_mixing)
        # Reading a value waits for the device: on the CPU it is free, elsewhere it is done with the logging.
        if total.device.type == "cpu" and not self.guard.policy.skip:
            self.check_finite(total, terms)
        for name, value in {"loss": total, **terms}.items():
            # In float64 where the device has it: the mean is then the same however often it is read.
            value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        return total

    @property
    def place(self) -> str:
        """Where training stands, for messages."""
        return f"epoch {self.current_epoch + 1}, step {self.global_step}"

    def check_finite(self, total: Tensor, terms: dict[str, Tensor]) -> None:
        """Stop before the update when the total loss is not finite, naming each term.

        Raises:
            DivergedError: with every term's value and what usually helps.
        """
        # All stop together: a process that went on would wait for the gradients of one that does not.
        bad = largest(not bool(total.isfinite()))
        try:
            finite_or_raise(total, terms, self.place)
            if bad:
                raise DivergedError(f"the loss is not finite at {self.place} in another process: {HELP}")
        except DivergedError as error:
            keep_bad(self, "loss", str(error), {name: float(value.detach()) for name, value in terms.items()})
            raise

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip by norm, and look at the norm: a gradient that is not finite must not reach the weights.

        Lightning refuses to clip with a fused optimizer in mixed precision, since fp16 may scale within it. A fused
        optimizer is not used with fp16 (``optim.build_optimizer``), so gradients are unscaled here; there the scaler
        itself leaves out steps that are not finite, which is how it finds its scale.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        most = self.config.optim.clip_grad
        if most:
            norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        else:
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = whole(norm)
        if self.config.optim.precision != "16" and self.guard.look(norm, self.global_step, optimizer):
            self.bad_gradient(optimizer)

    def bad_gradient(self, optimizer: Any) -> None:
        """A gradient that is not finite, known on the CPU before the step: leave it out, or stop.

        Raises:
            DivergedError: the policy is to stop, or as many steps as it allows were left out already.
        """
        text = f"the gradient is not finite at {self.place}"
        keep_bad(self, "gradient", text, {})
        if not self.guard.left_out():
            self.stop_for(text)
        if self.guard.policy.exact_attention:
            attention_in_float32(self.model)
        optimizer.zero_grad(
            set_to_none=True
        )  # a step without gradients leaves weights and moments as they are

    def report_bad(self) -> None:
        """Say what the device has seen since the last reading.

        Raises:
            DivergedError: as ``bad_gradient``.
        """
        count, first = self.guard.read()
        if count:
            text = f"the gradient is not finite at epoch {self.current_epoch + 1}, step {first}"
            keep_bad(self, "gradient", text, {})
            if not self.guard.left_out(count):
                self.stop_for(text)
            if self.guard.policy.exact_attention:
                attention_in_float32(self.model)

    def stop_for(self, text: str) -> None:
        """Raise the error that ends the run; the weights are those before the bad step."""
        left_out = f", after {self.guard.skipped - 1} such steps" if self.guard.skipped > 1 else ""
        raise DivergedError(f"{text}{left_out}: {HELP}")

    def take_train_terms(self) -> tuple[dict[str, float], int]:
        """Sum of every loss term since the last call, mean over processes, and the number of batches.

        Reading waits for the device, and for the other processes.
        """
        sums = {name: float(value.mean()) for name, value in every_process(self._sums).items()}
        count = self._count
        self._sums, self._count = {}, 0
        return sums, count

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

    def on_validation_start(self) -> None:
        """A sharded network is whole while it is validated: images differ in the number of passes that they take."""
        self._validating = contextlib.ExitStack()
        self._validating.enter_context(put_together(self.evaluated))

    def on_validation_end(self) -> None:
        """Share it out again."""
        self._validating.close()

    def validation_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> None:
        """Measure the evaluated weights."""
        images, targets = batch[0], batch[1]
        output = self.problem.infer(self.evaluated, images)
        self.meter.update(output, targets)
        if self.examples is not None and batch_idx == 0 and self.trainer.is_global_zero:
            picture = self.examples(images, output, targets)
            show_picture(self.loggers, "val/examples", picture, self.global_step)

    def on_validation_epoch_end(self) -> None:
        """Reduce over devices and keep the numbers where callbacks find them."""
        self.val_results = {f"val/{key}": float(value) for key, value in self.meter.compute().items()}
        self.meter.reset()
        bad = [key for key, value in self.val_results.items() if not math.isfinite(value)]
        if bad and not self.trainer.sanity_checking:
            raise DivergedError(
                f"validation after epoch {self.current_epoch + 1} gives {bad[0]}={self.val_results[bad[0]]}: the checkpoint "
                f"before is kept; {HELP}, or look for bad images by deepvit check-data"
            )

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Losses that were summed and not read yet belong to the epoch that goes on."""
        checkpoint["pending"] = {
            "sums": every_process(self._sums),
            "count": self._count,
            "left_out": self.guard.skipped,
        }
        checkpoint["entries"] = entries(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them back; runs saved at the end of an epoch have none.

        As many processes as before take each its own, others the mean.
        """
        pending = checkpoint.get("pending", {"sums": {}, "count": 0, "left_out": 0})
        rank, world = self.global_rank, self.trainer.world_size
        self._sums = {
            name: (value.flatten()[rank] if value.numel() == world else value.mean()).to(self.device)
            for name, value in pending["sums"].items()
        }
        self._count, self.guard.skipped = pending["count"], pending["left_out"]
        for network in (self.model, *([self.ema.module] if self.ema is not None else [])):
            set_entries(network, checkpoint.get("entries", {}))
        if self.guard.skipped and self.guard.policy.exact_attention:
            attention_in_float32(self.model)  # for the rest of the run, also of one that goes on
        # The schedule is a function of the options and the number of steps; timm's state would bring back the length
        # that the run had before it was made longer.
        checkpoint["lr_schedulers"] = []

    def on_train_start(self) -> None:
        """Put a run that goes on at its place in the schedule, and say so where that changed."""
        if not self.global_step:
            return
        group = self.optimizers(use_pl_optimizer=False).param_groups[0]  # type: ignore[union-attr]
        before = group["lr"]
        self.lr_schedulers().step_update(num_updates=self.global_step)  # type: ignore[union-attr]
        if not math.isclose(before, group["lr"], rel_tol=1e-9) and self.global_rank == 0:
            print(
                f"from step {self.global_step} on the learning rate follows the schedule of {self.config.optim.epochs} "
                f"epochs: {group['lr']:.2e} here instead of {before:.2e}",
                file=sys.stderr, flush=True,
            )  # fmt: skip
