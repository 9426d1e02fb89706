"""The frozen network that a loss compares with, by name: ``--loss_args.teacher runs/a`` or a timm name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from deepvit.data import InputSpec
from deepvit.errors import UserError
from deepvit.losses import Diversity
from deepvit.losses.registry import LOSSES
from deepvit.runs.subjects import load_subject
from deepvit.training.build import takes
from deepvit.training.groups import LossOptions


def with_teacher(options: LossOptions, backbone: nn.Module, own: InputSpec) -> dict[str, Any]:
    """The arguments of ``Diversity`` with the teacher as a network, where one is named; else as they are.

    A run folder gives its deployed network, a timm name the published weights; images of ``own`` preprocessing reach it in
    its own. One small batch is tried, so that a teacher that does not fit is refused before anything is written.

    Raises:
        UserError: nothing of that name, another patch grid, or images of a size that it does not take.
    """
    named = options.args.get("teacher")
    if not isinstance(named, str):
        return dict(options.args)
    wanted = {
        name: weight
        for name, weight in options.weights.items()
        if weight and name in LOSSES and any("teacher" in needs for needs in LOSSES[name].forms.values())
    }
    if not wanted:
        raise UserError(
            f"--loss_args.teacher {named}: no loss with a weight compares with a teacher; add --losses.gram_anchoring 1"
        )
    by_name = timm.is_model(named) and not Path(named).exists()
    arguments = {"img_size": own.hw} if by_name and takes(named, "img_size") else None
    subject = load_subject(named, model_args=arguments, pretrained=by_name)
    problem = subject.problem
    teacher = subject.model if problem is None else problem.backbone(subject.model)
    if (subject.input.mean, subject.input.std) != (own.mean, own.std):
        teacher.register_forward_pre_hook(_renormalised(own, subject.input))
    _try(wanted, backbone, teacher, named, own)
    return {**options.args, "teacher": teacher}


def _renormalised(own: InputSpec, its: InputSpec) -> Any:
    """A hook that takes images from one normalisation to another."""
    mean, std, its_mean, its_std = (
        torch.tensor(v).view(1, -1, 1, 1) for v in (own.mean, own.std, its.mean, its.std)
    )

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images: Tensor = args[0]
        values = [value.to(images.device, images.dtype) for value in (mean, std, its_mean, its_std)]
        return ((images * values[1] + values[0] - values[2]) / values[3], *args[1:])

    return hook


def _try(
    weights: dict[str, float], backbone: nn.Module, teacher: nn.Module, named: str, own: InputSpec
) -> None:
    mode, place = backbone.training, next(backbone.parameters()).device
    trial = Diversity(backbone, weights, teacher=teacher)
    try:
        with torch.no_grad(), trial.watch():
            backbone.eval()(torch.zeros(1, 3, *own.hw, device=place))
        with torch.no_grad():
            trial.terms(None)
    except (AssertionError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"--loss_args.teacher {named} does not take these images: {first}") from None
    finally:
        trial.remove()
        backbone.train(mode)
