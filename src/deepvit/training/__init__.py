"""Training on Lightning's Trainer: one schema of options, a thin module, callbacks, the run folder."""

from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import ImageDataModule
from deepvit.training.deploy import load_deployed
from deepvit.training.folder import Run, read_run
from deepvit.training.inference import evaluate, predict
from deepvit.training.module import Classifier
from deepvit.training.objective import Objective
from deepvit.training.run import train

__all__ = [
    "Classifier",
    "ImageDataModule",
    "Objective",
    "Run",
    "TrainConfig",
    "evaluate",
    "load_deployed",
    "predict",
    "read_run",
    "train",
]
