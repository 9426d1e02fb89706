"""The image that a network is tried on before a run: it tells what does not fit, and leaves nothing of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from deepvit.training import trial
from deepvit.training.config import TrainConfig
from deepvit.training.parts import Prepared, prepared

TINY: dict[str, Any] = {
    "model": "deepvit_s_patch16_224",
    "model_args": {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 8, "patch_size": 4, "drop_path_rate": 0.5},
    "data": "digits",
    "devices": "cpu",
    "losses": {"patch_cosine": 1.0, "patch_contrastive": 1.0, "patch_mixing": 1.0, "attention_cosine": 1.0},
}  # fmt: skip


def state_of(parts: Prepared) -> tuple[dict[str, torch.Tensor], dict[str, bool], torch.Tensor]:
    state = {name: value.clone() for name, value in parts.network.state_dict().items()}
    return state, {name: m.training for name, m in parts.network.named_modules()}, torch.get_rng_state()


def test_nothing_of_the_trial_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    tried = trial.try_once

    def watched(network: nn.Module, *rest: Any) -> None:
        handle = network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
        network.norm.eval()  # type: ignore[union-attr]  # a part that somebody has frozen stays so
        before = torch.get_rng_state()
        tried(network, *rest)
        assert torch.equal(torch.get_rng_state(), before)
        handle.remove()

    monkeypatch.setattr("deepvit.training.parts.try_once", watched)
    with_it = prepared(TrainConfig(**TINY))
    state, modes, random = state_of(with_it)
    assert seen == [(1, 3, 8, 8)]  # one pass, of one image
    assert any("running_mean" in name for name in state)
    assert all(m.grad is None for m in with_it.network.parameters())

    monkeypatch.setattr("deepvit.training.parts.try_once", lambda network, *_: network.norm.eval())
    without, modes_without, random_without = state_of(prepared(TrainConfig(**TINY)))
    assert state.keys() == without.keys()
    assert all(torch.equal(state[name], without[name]) for name in state)
    assert modes == modes_without
    assert not modes["norm"]
    assert modes["blocks.0"]
    assert torch.equal(random, random_without)


def test_what_listens_elsewhere_is_named_as_options_are() -> None:
    options = {**TINY, "model": "tnt_s_legacy_patch16_224", "losses": {"patch_cosine": 1.0}}
    options["model_args"] = {"depth": 1, "img_size": 32, "patch_size": 8}
    prepared(TrainConfig(**options, loss_args={"last": "norm"}))  # the way out that the refusal names
