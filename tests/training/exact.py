"""``deepvit.train`` with another optimizer or in float64, as a program: python exact.py HOW OPTIONS.

AdamW divides by the root of second moments: where a gradient is rounding alone its step is as large as any other, and what
processes agree to is hidden behind it. HOW is ``adamw`` or ``sgd`` (momentum 0.9), with ``64`` behind it in float64.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

import deepvit
from deepvit.training import trainee, trainer
from deepvit.training.optim import build_optimizer


def sgd(model: Any, extra: Any, config: Any, lr: float) -> torch.optim.SGD:
    """SGD with momentum over the groups of our own optimizer."""
    groups = build_optimizer(model, extra, config, lr).param_groups
    kept = [{name: group[name] for name in ("params", "weight_decay")} for group in groups]
    return torch.optim.SGD(kept, lr=lr, momentum=0.9)


if __name__ == "__main__":
    how, options = sys.argv[1], json.loads(sys.argv[2])
    if how.startswith("sgd"):
        trainee.build_optimizer = sgd  # type: ignore[assignment]
    if how.endswith("64"):
        trainer.parse_precision = lambda *_: "64-true"
    deepvit.train(**options)
