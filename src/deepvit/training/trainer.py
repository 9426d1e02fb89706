"""Lightning's Trainer for a run: devices, precision, what is shown and kept, and an end that says how to go on."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from deepvit.errors import UserError
from deepvit.training.callbacks import BestWeights, Progressing, RunLog
from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import ImageDataModule
from deepvit.training.module import Classifier


def build_trainer(config: TrainConfig, out: Path) -> tuple[lightning.Trainer, RunLog]:
    """Lightning's Trainer with what a run shows and keeps."""
    accelerator, devices = parse_devices(config.devices)
    progress = Progressing(config.progress)
    log = RunLog(out, config.log_every, progress)
    callbacks: list[Callback] = [progress, log]
    if config.keep == "best":
        callbacks.append(BestWeights(out / "checkpoints" / "best.safetensors"))
    if config.monitor_every:
        from deepvit.diagnostics import CollapseMonitor

        callbacks.append(CollapseMonitor(every_n_steps=config.monitor_every))
    callbacks.append(
        ModelCheckpoint(
            out / "checkpoints", filename="last", monitor=None, save_top_k=1, enable_version_counter=False,
            save_on_train_epoch_end=True,
        )
    )  # fmt: skip
    # Its notices (devices found, tips, products) are not about the user's work; warnings and errors stay.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("timm.scheduler").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator=accelerator,
        devices=devices,
        precision=parse_precision(config.precision, accelerator),
        max_epochs=config.epochs + config.cooldown_epochs,
        accumulate_grad_batches=config.accumulate,
        callbacks=callbacks,
        logger=TensorBoardLogger(out, name="tensorboard", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
    )
    return trainer, log


def parse_devices(devices: str) -> tuple[str, Any]:
    """``auto``, ``cpu``, a count or indices → Lightning's accelerator and devices."""
    if devices in ("auto", "cpu"):
        return devices, "auto" if devices == "auto" else 1
    parts = devices.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise UserError(f"devices={devices!r} must be auto, cpu, a number of accelerators, or indices as 0,1")
    if not torch.cuda.is_available():
        raise UserError(
            f"devices={devices!r} asks for accelerators, and torch sees none: use --devices cpu or auto"
        )
    chosen: Any = [int(p) for p in parts] if "," in devices else int(devices)
    count = max(chosen) + 1 if isinstance(chosen, list) else chosen
    if not 0 < count <= torch.cuda.device_count():
        raise UserError(f"devices={devices!r}: torch sees {torch.cuda.device_count()} accelerators here")
    return "gpu", chosen


def parse_precision(precision: str, accelerator: str) -> Any:
    """Our names → Lightning's; ``auto`` is bf16 on an accelerator that has it, else float32."""
    if precision == "auto":
        on_gpu = accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "32"
    return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[precision]


def fit(
    trainer: lightning.Trainer, module: Classifier, data: ImageDataModule, checkpoint: Path | None, out: Path
) -> None:
    """Train; Ctrl-C and SIGTERM end with the command that goes on.

    Raises:
        KeyboardInterrupt: after saying how to resume.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        # The checkpoint is this program's own; Lightning's loops and metrics in it need full unpickling.
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=False)
    except (SystemExit, KeyboardInterrupt):
        interrupted(out)
    finally:
        signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        interrupted(out)


def interrupted(out: Path) -> None:
    """Say where the run stands and end as an interruption does."""
    done = (out / "checkpoints" / "last.ckpt").exists()
    print(
        f"interrupted; {'the finished epochs are kept' if done else 'no epoch was finished'}. "
        f"Go on by: deepvit train --resume --out {out}",
        file=sys.stderr,
    )
    raise KeyboardInterrupt
