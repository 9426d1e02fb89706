"""Where a run's curves are shown: TensorBoard, Weights & Biases, both, or nowhere. ``metrics.csv`` is always written."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from deepvit.errors import UserError
from deepvit.files import write_atomic

Choice = Literal["tensorboard", "wandb", "both", "none"]
PROJECT = "deepvit"


def build_loggers(choice: Choice, out: Path) -> list[Logger]:
    """The loggers of a run; the run's own of Weights & Biases goes on with the run.

    W&B's own variables say the rest: ``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE=offline``.

    Raises:
        UserError: Weights & Biases is not installed.
    """
    found: list[Logger] = []
    if choice in ("tensorboard", "both"):
        found.append(TensorBoardLogger(out, name="tensorboard", version=""))
    if choice in ("wandb", "both"):
        if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
            raise UserError("--logger wandb needs the extra: pip install 'deepvit[wandb]'")
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        found.append(
            WandbLogger(name=out.name, save_dir=out, project=project, id=known_id(out), resume="allow")
        )
    return found


def known_id(out: Path) -> str | None:
    """The name by which Weights & Biases knows the run in this folder, where it has one."""
    file = out / "wandb" / "id"
    return file.read_text().strip() if file.is_file() else None


def show_options(loggers: Iterable[Logger], values: dict[str, Any], metric: str) -> None:
    """Show nested options beside the scalar ``metric``: TensorBoard's table of hyperparameters, W&B's configuration."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for summary in hparams(flat(values), {metric: 0.0}):
                logger.experiment.file_writer.add_summary(summary)
            continue
        if isinstance(logger, WandbLogger):
            write_atomic(Path(str(logger.save_dir)) / "wandb" / "id", f"{opened(logger).id}\n")
        logger.log_hyperparams(flat(values))


def opened(logger: WandbLogger) -> Any:
    """The run at Weights & Biases, which begins now.

    Raises:
        UserError: no account, no connection.
    """
    try:
        return logger.experiment
    except Exception as error:  # of wandb's own kinds, and of the network's
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"Weights & Biases does not open a run ({reason}): wandb login, or WANDB_MODE=offline, or --logger tensorboard"
        ) from None


def show_picture(loggers: Iterable[Logger], name: str, picture: Tensor, step: int) -> None:
    """Show a picture, uint8 [3, H, W]."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture.permute(1, 2, 0).numpy()], step=step)


def close(loggers: Iterable[Logger]) -> None:
    """End what goes on beyond a logger: the next run of this process is another one to Weights & Biases."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name, as loggers take them: numbers, truth values and texts."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
