"""When a run is saved: after each epoch, every so many steps or minutes, and when a signal asks it to end."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint

from deepvit.runs.folder import still_there
from deepvit.training.checkpoints import LAST
from deepvit.training.guards import DivergedError
from deepvit.training.processes import largest
from deepvit.training.sharding import own
from deepvit.training.trainee import Trainee

AGAIN = 75
"""Exit code after SIGUSR1, by which schedulers start a job again (EX_TEMPFAIL of sysexits.h)."""


class Stopped(SystemExit):
    """A signal has ended the run, which is saved; its code is 128 + the signal's number, or ``AGAIN``."""


class Ended(BaseException):
    """Leaves Lightning's loops once a signal's saving is done; Lightning would make ``exit(1)`` of a KeyboardInterrupt."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Saving(Checkpoint):
    """Saves ``checkpoints/last.ckpt``; a subclass of Lightning's ``Checkpoint``, which it calls after all others.

    Args:
        out: run folder.
        every_steps: optimizer steps between two savings inside an epoch; 0 for none.
        every_minutes: minutes between two savings inside an epoch; 0 for none.
    """

    def __init__(self, out: Path, every_steps: int = 0, every_minutes: float = 0.0) -> None:
        self.path = out / "checkpoints" / LAST
        self.every_steps, self.every_minutes = every_steps, every_minutes
        self.asked: int | None = None
        self._saved_step, self._saved_at = -1, time.monotonic()

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler: save after the present step, then end; a second Ctrl-C ends at once."""
        if self.asked == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.asked = number

    def on_train_start(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """The clock runs from here; what is in the file now is this step.

        From here on signals come to us alone: Lightning has put a SIGTERM handler of its own before ours by now, which ends
        loops without saving, and waits for the other processes inside the handler.
        """
        listen(self.ask)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Trainee, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # type: ignore[override]
        """Save inside the epoch where it is time, between two steps: gradients that are being added up are not saved."""
        accumulate = module.config.optim.accumulate
        last = batch_idx + 1 >= int(trainer.num_training_batches)
        if last or (batch_idx + 1) % accumulate or trainer.global_step == self._saved_step:
            return
        # With several processes all must agree, which makes them wait: asked only every few steps.
        looks = trainer.world_size == 1 or trainer.global_step % module.config.run.log_every == 0
        asked = largest(self.asked or 0, module.device) if looks else 0
        due: float | bool = bool(self.every_steps) and trainer.global_step % self.every_steps == 0
        if self.every_minutes and looks:
            due = due or largest(time.monotonic() - self._saved_at >= 60 * self.every_minutes, module.device)
        if due or asked:
            self.save(trainer, module)
        if asked:
            raise Ended(int(asked))

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Save the finished epoch."""
        self.save(trainer, module)
        if asked := largest(self.asked or 0, module.device):
            raise Ended(int(asked))

    def save(self, trainer: lightning.Trainer, module: Trainee) -> None:
        """Write the checkpoint, unless the weights are not finite: the good one before must stay.

        Raises:
            DivergedError: a weight is NaN or infinite.
            UserError: the run folder is gone.
        """
        if trainer.is_global_zero:
            still_there(self.path.parents[1])
        bad = bad_weights(module)
        if largest(bool(bad), module.device):
            name = bad[0] if bad else "of another process"
            raise DivergedError(
                f"the weights are not finite after step {trainer.global_step} ({name}): the checkpoint before is kept; "
                "lower --lr, lengthen --warmup_steps, or use --precision 32"
            )
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()


def listen(ask: Any) -> dict[int, Any]:
    """Send the signals that end a run to ``ask``; returns the handlers before. Only the main thread can be asked."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    names = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    return {number: signal.signal(number, ask) for number in names}


def bad_weights(module: Trainee) -> list[str]:
    """Names of parameters and buffers with NaN or infinite values; one wait for the device."""
    tensors = [(n, own(t)) for n, t in module.state_dict().items() if t.is_floating_point()]
    if not tensors:
        return []
    # A sum is finite only if all terms are, unless it overflows: what looks bad is looked at by element.
    finite = torch.stack([tensor.sum(dtype=torch.float64).isfinite() for _, tensor in tensors])
    if bool(finite.all()):
        return []
    return [name for name, tensor in tensors if not bool(tensor.isfinite().all())]


WHOLE: ContextVar[bool] = ContextVar("whole", default=True)
"""Whether a run stands by itself; of one that is part of a study, the study says how to go on."""


def way_on(out: Path) -> str:
    """The command that goes on with a run, as a sentence behind what was said; nothing within a study."""
    return f" Go on by: deepvit train --resume --out {shlex.quote(str(out))}" if WHOLE.get() else ""


def stop(number: int, out: Path) -> None:
    """End as a signal asked, saying how to go on: the run is saved.

    Raises:
        KeyboardInterrupt: for Ctrl-C.
        Stopped: for SIGTERM and SIGUSR1.
    """
    name = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
    print(f"{name}; the run is saved.{way_on(out)}", file=sys.stderr, flush=True)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(AGAIN if number == signal.SIGUSR1 else 128 + number)
