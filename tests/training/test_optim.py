"""Which parameters decay, how the learning rate moves, and how it falls from block to block."""

from __future__ import annotations

import itertools

import pytest
import timm
import torch

from deepvit.errors import UserError
from deepvit.training.groups import OptimOptions as TrainConfig
from deepvit.training.optim import build_optimizer, build_schedule, peak_lr, warmup_steps


def names_by_group(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[float, set[str]]]:
    names = {id(p): n for n, p in model.named_parameters()}
    return [(g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in optimizer.param_groups]


def test_norms_biases_tokens_and_tables_do_not_decay() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, reg_tokens=2, num_classes=3)
    optimizer = build_optimizer(model, torch.nn.Linear(3, 2), TrainConfig(weight_decay=0.3), 1e-3)
    model.extra = optimizer  # keeps the optimizer beside the names
    del model.extra
    inside = set(dict(model.named_parameters()))
    seen: set[str] = set()
    names = {id(p): n for n, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names.get(id(parameter))
            exempt = parameter.ndim <= 1 or name in ("cls_token", "pos_embed", "reg_token")
            assert group["weight_decay"] == (0.0 if exempt else 0.3), name
            seen |= {name} if name else set()
    assert seen == inside
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(inside) + 2


def test_schedule_warms_up_and_ends_at_the_minimum() -> None:
    config = TrainConfig(epochs=10, cooldown_epochs=2, lr=1.0, min_lr=0.01, warmup_steps=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, config, steps_per_epoch=10)
    rates = [optimizer.param_groups[0]["lr"]]
    for step in range(1, 120):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(1e-6)
    assert all(a < b for a, b in itertools.pairwise(rates[:6]))
    assert max(rates) > 0.98
    assert rates[50] == pytest.approx(0.505, abs=0.01)  # half way down the cosine
    assert rates[100:] == [pytest.approx(0.01)] * 20


def test_layer_decay_falls_by_the_factor_from_block_to_block() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=32, num_classes=3)
    optimizer = build_optimizer(model, None, TrainConfig(layer_decay=0.5), 1e-3)
    names = {id(p): n for n, p in model.named_parameters()}
    scales = {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert scales["head.weight"] == 1.0
    for upper, lower in ((2, 1), (1, 0)):
        ratio = scales[f"blocks.{upper}.mlp.fc1.weight"] / scales[f"blocks.{lower}.mlp.fc1.weight"]
        assert ratio == pytest.approx(2.0)
    assert scales["patch_embed.proj.weight"] < scales["blocks.0.mlp.fc1.weight"]
    with pytest.raises(UserError, match="layer_decay"):
        build_optimizer(torch.nn.Linear(2, 2), None, TrainConfig(layer_decay=0.5), 1e-3)


def test_defaults_stay_in_their_bounds() -> None:
    assert peak_lr(TrainConfig(), 16) == 5e-4
    assert peak_lr(TrainConfig(), 256) == pytest.approx(1e-3)
    assert peak_lr(TrainConfig(), 65536) == 2e-3
    assert peak_lr(TrainConfig(lr=0.3), 16) == 0.3
    assert warmup_steps(TrainConfig(), 1000) == 50
    assert warmup_steps(TrainConfig(), 4) == 3
    assert warmup_steps(TrainConfig(warmup_steps=7), 1000) == 7
