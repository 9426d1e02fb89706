"""What a run was really trained with: the values that options left open took for this data, network and machine."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning

from deepvit.data import Loaders
from deepvit.parsing import json_ready
from deepvit.runs.card import ModelCard
from deepvit.training.config import TrainConfig
from deepvit.training.optim import epochs_of, peak_lr, schedule_steps, warmup_steps


def in_force(
    config: TrainConfig,
    card: ModelCard,
    loaders: Loaders,
    trainer: lightning.Trainer,
    steps_per_epoch: int,
    images_per_step: int,
) -> dict[str, Any]:
    """Learning rate and its schedule, precision, devices, sizes and augmentation in force, as JSON (``run.json``)."""
    optim, total = config.optim, schedule_steps(config.optim, steps_per_epoch)
    augment = getattr(
        loaders, "augment", None
    )  # a task with transforms of its own has its options in config.yaml
    values = {
        "lr": peak_lr(optim, images_per_step),
        "min_lr": optim.min_lr,
        "schedule": optim.schedule,
        "schedule_steps": total,
        "warmup_steps": warmup_steps(optim, total),
        "epochs": epochs_of(optim, steps_per_epoch),
        "steps_per_epoch": steps_per_epoch,
        "images_per_step": images_per_step,
        "precision": str(trainer.precision),
        "accelerator": trainer.strategy.root_device.type,
        "devices": trainer.world_size,
        "train_images": len(loaders.train_set),
        "val_images": len(loaders.val_set),
        "model_args": card.model_args,
        "input": dataclasses.asdict(card.input) | {"crop_pct": card.input.crop},
        "augment": None if augment is None else dataclasses.asdict(augment),
    }
    return dict(json_ready(values))
