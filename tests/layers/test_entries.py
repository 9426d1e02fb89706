"""Re-attention at another number of tokens than that of training: the norm's mean is the one of the maps at hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import deepvit
from deepvit import cures
from deepvit.exporting.plain import plain
from deepvit.layers import ReAttention
from deepvit.layers.entries import entries, learn_entries, of_tokens
from deepvit.losses.attention_inputs import head_mix
from deepvit.models import create
from deepvit.ops.reference import reattention_maps

N, M = 17, 37


def trained(layer: nn.Module, tokens: int = N, steps: int = 60) -> nn.Module:
    """A layer whose running statistics are of maps of so many tokens, and whose mixture moves slowly meanwhile."""
    torch.manual_seed(0)
    layer.train()
    for _ in range(steps):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(1e-4 * torch.randn_like(parameter))
            layer(torch.randn(4, tokens, 24))
    return layer.eval()


@pytest.fixture(params=["published", "gated"])
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    if request.param == "published":
        return trained(ReAttention(24, 3, backend="reference"))
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=1
    )
    gated = cures.apply(model, "reattention", blocks="0").blocks[0].attn
    nn.init.ones_(gated.mix_gate)
    return trained(gated)


def as_by_the_mean(layer: Any, x: Tensor) -> Tensor:
    """The layer with the running mean that maps of x's size would have given."""
    other = copy.deepcopy(layer)
    other.entry_mean = 0.0
    rows = other.reatten_matrix.weight.flatten(1).sum(1)
    with torch.no_grad():
        other.var_norm.running_mean += rows * (1 / x.shape[1] - 1 / N)
    return torch.as_tensor(other(x))


def test_the_mean_entry_of_a_mixed_map_hangs_on_nothing_but_n() -> None:
    torch.manual_seed(0)
    theta, bias = torch.randn(3, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for tokens in (N, M):
        q = torch.randn(2, 3, tokens, 8, dtype=torch.float64)
        maps, _ = reattention_maps(q, q, theta, theta_bias=bias, norm="none")
        mixed = torch.einsum("hg,bgmn->bhmn", theta, maps) + bias[:, None, None]
        torch.testing.assert_close(mixed.mean((0, 2, 3)), bias + theta.sum(1) / tokens)


def test_at_another_size_it_computes_with_the_mean_of_that_size(layer: Any) -> None:
    assert layer.entry_mean == 1 / N
    x = torch.randn(2, M, 24)
    torch.testing.assert_close(layer(x), as_by_the_mean(layer, x), rtol=1e-4, atol=1e-4)
    official = copy.deepcopy(layer)
    official.entry_mean = 0.0
    assert (official(x) - layer(x)).abs().max() > 0.1
    same = torch.randn(2, N, 24)
    assert torch.equal(official(same), layer(same))


def test_evaluation_is_near_to_what_training_computes_at_that_size(layer: Any) -> None:
    x = 1.0 + torch.randn(8, M, 24)  # as values of patches have: something in common
    by_batch = copy.deepcopy(layer).train()
    wanted = by_batch(x).detach()
    official = copy.deepcopy(layer)
    official.entry_mean = 0.0
    far, near = (float((m(x).detach() - wanted).norm() / wanted.norm()) for m in (official, layer))
    assert near < 1.0  # the variance is that of the other size
    assert far > 2 * near


def test_every_gradient(layer: Any) -> None:
    x = torch.randn(2, M, 24)
    layer.double()
    x = x.double().requires_grad_()
    weight = torch.randn(2, M, 24, dtype=torch.float64)
    found = torch.autograd.grad((layer(x) * weight).sum(), layer.reatten_matrix.weight)[0]
    h, numeric = 1e-6, torch.zeros_like(found)
    with torch.no_grad():
        for place in range(found.numel()):
            flat = layer.reatten_matrix.weight.view(-1)
            flat[place] += h
            up = (layer(x) * weight).sum()
            flat[place] -= 2 * h
            down = (layer(x) * weight).sum()
            flat[place] += h
            numeric.view(-1)[place] = (up - down) / (2 * h)
    torch.testing.assert_close(found, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["streaming", "auto"])
def test_every_backend(backend: str) -> None:
    x = torch.randn(2, M, 24)
    layer = trained(ReAttention(24, 3, backend="reference"))
    wanted = layer(x)
    layer.backend = backend
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)


def test_scripted_and_traced() -> None:
    layer, x = trained(ReAttention(24, 3)), torch.randn(2, M, 24)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_folded_for_export(layer: Any) -> None:
    holder = nn.Sequential(layer)
    for tokens in (N, M):
        x = torch.randn(2, tokens, 24)
        torch.testing.assert_close(plain(holder)(x), holder(x), rtol=1e-4, atol=1e-4)


def test_the_map_that_a_loss_sees_is_the_one_that_is_used() -> None:
    layer, maps = trained(ReAttention(24, 3)), torch.softmax(torch.randn(2, 3, M, M), -1)
    matrix = layer.reatten_matrix
    mixed = head_mix(matrix.weight, matrix.bias, layer.var_norm, layer.entry_mean)(maps)
    bias = matrix.bias - matrix.weight.sum((1, 2, 3)) * (1 / M - 1 / N)
    wanted = head_mix(matrix.weight, bias, layer.var_norm)(maps)
    torch.testing.assert_close(mixed, wanted, rtol=1e-4, atol=1e-4)


def test_sizes_that_change_while_training_are_averaged_as_the_statistics_are() -> None:
    layer = ReAttention(24, 3)
    layer.train()
    for tokens in (N, M, M):
        layer(torch.randn(1, tokens, 24))
    first = 1 / N
    second = first + 0.1 * (1 / M - first)
    assert layer.entry_mean == pytest.approx(second + 0.1 * (1 / M - second))


def small(**options: Any) -> Any:
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 2, **options}
    return create("deepvit_tiny_d16_patch4_32", num_classes=3, **given)


def test_a_network_of_ours_says_what_its_weights_are_of() -> None:
    network = small(reattention_blocks="all")
    assert entries(network) == {f"blocks.{i}.attn": 1 / 17 for i in range(2)}
    larger = small(reattention_blocks="all", img_size=48)
    larger.load_state_dict(network.state_dict())  # the position table is resized
    assert set(entries(larger).values()) == {1 / 17}
    of_tokens(larger, 5)
    learn_entries(larger.train(), torch.randn(2, 3, 48, 48))
    assert larger.training
    assert set(entries(larger).values()) == {1 / 37}


def test_a_run_keeps_it_and_another_run_takes_it_over(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": "deepvit_tiny_d16_patch4_32", "data": "digits", "epochs": 1, "batch_size": 16, "max_train_images": 64,
        "max_val_images": 16, "diagnose_images": 0, "progress": False, "devices": "cpu",
        "model_args": {"depth": 2, "img_size": 8, "patch_size": 2, "embed_dim": 24, "num_heads": 3},
    }  # fmt: skip
    deepvit.train(**options, ema_decay=0.5, out=str(tmp_path / "one"))
    network, card = deepvit.load_deployed(tmp_path / "one")
    assert set(entries(network).values()) == {1 / 17}
    assert card.entries == entries(network)
    # what a card says wins over what the network's own size would say
    card.entries.update(dict.fromkeys(card.entries, 1 / 9))
    network.blocks[0].attn.entry_mean = 1 / 9
    network.blocks[1].attn.entry_mean = 1 / 9
    from deepvit.runs.card import save_deployed

    save_deployed(tmp_path / "one", network, card)
    again, _ = deepvit.load_deployed(tmp_path / "one")
    assert set(entries(again).values()) == {1 / 9}
