"""deepvit: train Vision Transformers deep — see attention collapse in any ViT, cure it, prove that it worked.

Importing the package registers the DeepViT models with timm. Everything heavier (training, data, reports)
is imported when it is first used, so that ``import deepvit`` costs little more than ``import timm``. The command
line, whose help needs no models, registers them when a command runs.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if "deepvit_command" not in sys.modules and sys.orig_argv[1:3] != ["-m", "deepvit"]:
    from deepvit import models as models  # registers with timm
    from deepvit.hubs import cured as _cured  # the same, of cured networks  # noqa: F401

if TYPE_CHECKING:
    from deepvit import cures as cures
    from deepvit import losses as losses
    from deepvit.benchmarking.run import benchmark as benchmark
    from deepvit.capturing import capture as capture
    from deepvit.collapse.probe import CollapseProbe as CollapseProbe
    from deepvit.commands.check_data import check_data as check_data
    from deepvit.commands.compare import compare as compare
    from deepvit.commands.diagnose import diagnose as diagnose
    from deepvit.commands.evaluate import evaluate as evaluate
    from deepvit.commands.figures import figures as figures
    from deepvit.commands.predict import predict as predict
    from deepvit.experiments.study import study as study
    from deepvit.exporting import export as export
    from deepvit.hubs.push import push as push
    from deepvit.layers import ReAttention as ReAttention
    from deepvit.models import convert as convert
    from deepvit.models import load_official as load_official
    from deepvit.runs import load_deployed as load_deployed
    from deepvit.training import train as train
    from deepvit.training.hf_monitor import CollapseTrainerCallback as CollapseTrainerCallback
    from deepvit.training.monitor import CollapseMonitor as CollapseMonitor

__version__ = "0.2.0"

# Public name → module that holds it; a name without a colon is a module of the package.
_PUBLIC = {
    "CollapseMonitor": "deepvit.training.monitor",
    "CollapseProbe": "deepvit.collapse.probe",
    "CollapseTrainerCallback": "deepvit.training.hf_monitor",
    "ReAttention": "deepvit.layers",
    "benchmark": "deepvit.benchmarking.run",
    "capture": "deepvit.capturing",
    "check_data": "deepvit.commands.check_data",
    "compare": "deepvit.commands.compare",
    "convert": "deepvit.models",
    "diagnose": "deepvit.commands.diagnose",
    "evaluate": "deepvit.commands.evaluate",
    "export": "deepvit.exporting",
    "figures": "deepvit.commands.figures",
    "load_deployed": "deepvit.runs",
    "load_official": "deepvit.models",
    "predict": "deepvit.commands.predict",
    "push": "deepvit.hubs.push",
    "study": "deepvit.experiments.study",
    "train": "deepvit.training",
}
_MODULES = (
    "capturing",
    "collapse",
    "cures",
    "data",
    "layers",
    "losses",
    "ops",
    "report",
    "runs",
    "tasks",
    "training",
)

__all__ = [*_MODULES, *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"deepvit.{name}")
    raise AttributeError(f"module 'deepvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
