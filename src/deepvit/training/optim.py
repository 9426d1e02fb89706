"""Optimizer and learning-rate schedule: AdamW over timm's parameter groups, warm-up counted in steps."""

from __future__ import annotations

import math

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from torch import nn

from deepvit.errors import UserError
from deepvit.training.groups import OptimOptions

# Tokens and tables that some models of timm exempt from weight decay and others do not.
_NO_DECAY_NAMES = {
    "cls_token",
    "reg_token",
    "dist_token",
    "mask_token",
    "pos_embed",
    "relative_position_bias_table",
}


def peak_lr(config: OptimOptions, images_per_step: int) -> float:
    """``config.lr``, or by default 1e-3·√(images a step / 256), kept within 5e-4 and 2e-3.

    The square root is the usual rule for Adam-like optimizers; the bounds are those between which the
    shipped recipes were found to train.
    """
    if config.lr is not None:
        return config.lr
    return min(2e-3, max(5e-4, 1e-3 * math.sqrt(images_per_step / 256)))


def warmup_steps(config: OptimOptions, total_steps: int) -> int:
    """``config.warmup_steps``, or 5% of all steps (10 to 10,000); always fewer than all steps."""
    asked = config.warmup_steps
    if asked is None:
        asked = min(10_000, max(10, round(0.05 * total_steps)))
    return min(asked, max(total_steps - 1, 0))


def build_optimizer(
    model: nn.Module, extra: nn.Module | None, config: OptimOptions, lr: float
) -> torch.optim.AdamW:
    """AdamW in timm's groups: no decay on norms, biases, tokens and tables; layer-wise decay if asked.

    Args:
        model: the network; its ``no_weight_decay`` and ``group_matcher`` are honoured where it has them.
        extra: parameters trained beside it (the head of the mixing loss), or None.
        config: ``weight_decay`` and ``layer_decay`` are read.
        lr: the peak learning rate.

    Raises:
        UserError: layer-wise decay for a model that does not say which layers it has.
    """
    named = {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] in _NO_DECAY_NAMES}
    exempt = {*getattr(model, "no_weight_decay", set)(), *named}
    if config.layer_decay is None:
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=exempt)
    else:
        if not hasattr(model, "group_matcher"):
            raise UserError(
                f"layer_decay needs a model with layer groups, which {type(model).__name__} lacks"
            )
        groups = param_groups_layer_decay(model, config.weight_decay, exempt, layer_decay=config.layer_decay)
    if extra is not None:
        groups += param_groups_weight_decay(extra, config.weight_decay)
    groups = [group for group in groups if group["params"]]
    # One fused kernel for all parameters where the device has it; the step is otherwise hundreds of small ones.
    # Not with fp16: its gradients are scaled, and a fused step would unscale them after they were clipped.
    fused = config.precision != "16" and all(
        p.device.type in ("cpu", "cuda") for g in groups for p in g["params"]
    )
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=fused)


def build_schedule(
    optimizer: torch.optim.Optimizer, config: OptimOptions, steps_per_epoch: int
) -> CosineLRScheduler | PolyLRScheduler:
    """Linear warm-up from 1e-6, cosine or line to ``min_lr`` at the end of ``epochs`` or ``iterations``, then constant.

    ``poly`` is segmentation's usual ``(1 - step / steps)^power`` with power 1, times the peak from the first step on: the
    line starts at the peak at step 0, not where the warm-up ends.

    The result is timm's scheduler: ``step_update(number of steps done)`` sets the rate of the next step and
    honours each group's ``lr_scale`` (layer-wise decay).
    """
    total = schedule_steps(config, steps_per_epoch)
    common = {
        "t_initial": total,
        "lr_min": config.min_lr,
        "warmup_t": warmup_steps(config, total),
        "warmup_lr_init": 1e-6,
        "t_in_epochs": False,
    }
    if config.schedule == "poly":
        return PolyLRScheduler(optimizer, power=1.0, **common)
    return CosineLRScheduler(optimizer, **common)


def schedule_steps(config: OptimOptions, steps_per_epoch: int) -> int:
    """Steps of the optimizer from the first to the end of the schedule; those of the cool-down come after it."""
    return max(config.iterations or config.epochs * steps_per_epoch, 1)


def epochs_of(config: OptimOptions, steps_per_epoch: int) -> int:
    """Epochs of the whole run: ``epochs``, or as many whole ones as hold ``iterations``, and those of the cool-down."""
    epochs = config.epochs if config.iterations is None else -(-config.iterations // steps_per_epoch)
    return epochs + config.cooldown_epochs
