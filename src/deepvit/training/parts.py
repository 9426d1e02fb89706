"""The parts of a run that its options alone decide: network, data, what is minimised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning
from torch import Tensor, nn

from deepvit import tasks
from deepvit.data import Loaders
from deepvit.errors import UserError
from deepvit.runs.card import ModelCard
from deepvit.tasks import Settings, Task
from deepvit.training.build import build_model, native_size
from deepvit.training.config import TrainConfig
from deepvit.training.objective import Objective
from deepvit.training.teachers import with_teacher
from deepvit.training.trial import try_once


@dataclass
class Prepared:
    """What is trained, on what, by what loss: everything that the options alone decide."""

    network: nn.Module
    card: ModelCard
    problem: Task
    objective: Objective
    loaders: Loaders
    data: Any
    examples: Callable[[Tensor, Any, Any], Tensor] | None = None


def opened_data(config: TrainConfig) -> Any:
    """The data of a run, as its task opens them; ``UserError`` where they are not there."""
    return tasks.find(config.task).open(config.data.spec, config.data.source, config.own)


def prepared(config: TrainConfig, data: Any = None) -> Prepared:
    """Build the parts of a run and try them on one image; nothing is decoded or written yet.

    Args:
        config: all options.
        data: what ``opened_data(config)`` gives, where it is there already.

    Raises:
        UserError: a mistake in the options or the data.
    """
    lightning.seed_everything(config.optim.seed, verbose=False)
    kind = tasks.find(config.task)
    data = opened_data(config) if data is None else data
    problem = kind(kind.facts_of(data, config.own))
    network, card = build_model(config, problem, native_size(data))
    fitting = problem.fitting(data, card.input, network, settings_of(config))
    objective = Objective(
        problem.backbone(network), fitting.criterion, classes=problem.classes, weights=config.loss.weights,
        options=with_teacher(config.loss, problem.backbone(network), card.input), mix=fitting.mix,
    )  # fmt: skip
    try_once(network, objective, card, config)
    return Prepared(network, card, problem, objective, fitting.loaders, data, fitting.examples)


def settings_of(config: TrainConfig) -> Settings:
    """What of the options concerns batches."""
    return Settings(
        batch_size=config.optim.batch_size,
        augment=config.data.augment,
        losses=config.loss.weights,
        options=config.own,
        workers=config.run.workers,
        seed=config.optim.seed,
        max_train_images=config.data.max_train_images,
        max_val_images=config.data.max_val_images,
        unreadable=config.data.unreadable,
        progress=config.run.progress,
    )


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Have a backbone compute its blocks again in the backward pass.

    Raises:
        UserError: a network that cannot.
    """
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # timm's networks without it assert
        raise UserError(f"{type(backbone).__name__} has no gradient checkpointing: leave it out") from None


def steps_of(loaders: Loaders, trainer: lightning.Trainer, config: TrainConfig) -> tuple[int, int]:
    """Optimizer steps of an epoch and images of a step, over all devices."""
    world, size = trainer.world_size, config.optim.batch_size
    share = len(loaders.train_set) // world
    batches = max(share // size, 1)  # fewer images than a batch make one smaller batch
    return -(-batches // config.optim.accumulate), size * config.optim.accumulate * world
