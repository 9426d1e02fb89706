"""Training on Lightning's Trainer: one schema of options, a thin module, callbacks, the run folder."""

from deepvit.runs import Run, load_deployed, read_run
from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import ImageDataModule
from deepvit.training.objective import Objective
from deepvit.training.run import train
from deepvit.training.trainee import Trainee

__all__ = [
    "ImageDataModule",
    "Objective",
    "Run",
    "TrainConfig",
    "Trainee",
    "load_deployed",
    "read_run",
    "train",
]
