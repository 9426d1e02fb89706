"""Lightning's Trainer for a run: devices, precision, what is shown and kept, and an end that says how to go on."""

from __future__ import annotations

import contextlib
import logging
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from deepvit.errors import UserError
from deepvit.files import said_of_place
from deepvit.runs.folder import still_there
from deepvit.training.callbacks import BestWeights, Progressing, RunLog
from deepvit.training.checkpoints import SafeCheckpoints
from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import BatchModule
from deepvit.training.processes import Team
from deepvit.training.saving import Ended, Saving, listen, stop, way_on
from deepvit.training.strategy import lightning_arguments
from deepvit.training.trainee import Trainee


def build_trainer(
    config: TrainConfig, out: Path, team: Team, unused: bool = False
) -> tuple[lightning.Trainer, RunLog]:
    """Lightning's Trainer with what a run shows and keeps, for one process of a team."""
    arguments = lightning_arguments(config, team, unused)
    progress = Progressing(config.run.progress)
    log = RunLog(out, config.run.log_every, progress)
    callbacks: list[Callback] = [progress, log]
    if config.result.keep == "best":
        callbacks.append(BestWeights(out / "checkpoints" / "best.safetensors"))
    if config.result.monitor_every:
        from deepvit.training.monitor import CollapseMonitor

        callbacks.append(CollapseMonitor(every_n_steps=config.result.monitor_every))
    callbacks.append(Saving(out, config.run.save_steps, config.run.save_minutes))
    # Its notices (devices found, tips, products) are not about the user's work; warnings and errors stay.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("timm.scheduler").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        **{**arguments, "plugins": [SafeCheckpoints(), *arguments["plugins"]]},
        precision=parse_precision(config.optim.precision, arguments["accelerator"]),
        max_epochs=config.total_epochs,
        accumulate_grad_batches=config.optim.accumulate,
        callbacks=callbacks,
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders know their process
        log_every_n_steps=config.run.log_every,
    )
    return trainer, log


def parse_precision(precision: str, accelerator: str) -> Any:
    """Our names → Lightning's; ``auto`` is bf16 on an accelerator that has it, else float32."""
    if precision == "auto":
        on_gpu = accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def fit(
    trainer: lightning.Trainer, module: Trainee, data: BatchModule, checkpoint: Path | None, out: Path
) -> None:
    """Train; Ctrl-C, SIGTERM and SIGUSR1 save after the present step and end with the command that goes on.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        Stopped: after SIGTERM or SIGUSR1, with the exit code that a scheduler understands.
    """
    saving = next(c for c in trainer.callbacks if isinstance(c, Saving))
    with handling(saving.ask):
        try:
            # Tensors and plain values are all that a checkpoint of ours holds; nothing in a file is executed.
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{checkpoint} holds more than tensors and plain values, and is not loaded: it was not written by this "
                "version of deepvit; start anew with --overwrite"
            ) from None
        except Ended as ended:
            stop(ended.number, out)
        except OSError as error:  # TensorBoard's writer, for one
            still_there(out)
            if said := said_of_place(error, out):
                raise UserError(
                    f"{error.filename or out} cannot be written: {said}; make room.{way_on(out)}"
                ) from None
            raise
        except (KeyboardInterrupt, SystemExit):  # pressed twice: nothing of the present step is waited for
            said = (
                "what was saved last is kept" if checkpoint or saving.path.exists() else "nothing was saved"
            )
            print(f"interrupted; {said}.{way_on(out)}", file=sys.stderr)
            raise KeyboardInterrupt from None


@contextlib.contextmanager
def handling(ask: Any) -> Iterator[None]:
    """Signals that end a run go to ``ask`` inside."""
    before = listen(ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
