"""Test-time registers: neurons found where they were put, the shift by hand, outliers gone, record and refusals."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from cures.small_vits import SMALL

from deepvit import cures
from deepvit.cures.test_time_registers import register_neurons
from deepvit.errors import UserError

BLOCK, NEURONS, COLUMN = 1, [5, 17], 3


def made(class_token: bool = True) -> torch.nn.Module:
    """A ViT in which two neurons of one block fire at the patches whose channel COLUMN is large, and write a huge vector."""
    torch.manual_seed(0)
    pool = {} if class_token else {"class_token": False, "global_pool": "avg"}
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, **pool).eval()
    mlp = model.blocks[BLOCK].mlp
    with torch.no_grad():
        for neuron in NEURONS:
            mlp.fc1.weight[neuron].zero_()
            mlp.fc1.weight[neuron, COLUMN] = 20.0
            mlp.fc1.bias[neuron] = -30.0
            mlp.fc2.weight[:, neuron] = torch.randn(mlp.fc2.out_features)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    side = SMALL["img_size"]
    return torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(1))


def norms(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = model.blocks[-1].register_forward_hook(lambda m, a, out: kept.append(out))
    model(images)
    handle.remove()
    return kept[0].norm(dim=-1)


def share(patches: torch.Tensor) -> float:
    return float((patches > 3 * patches.median(1, keepdim=True).values).float().mean())


@torch.no_grad()
def test_the_neurons_are_found_and_the_outliers_move_to_the_register(images: torch.Tensor) -> None:
    model = made()
    before = norms(model, images)[:, 1:]
    assert 0 < share(before) < 0.4
    found = register_neurons(model, images, top=2)
    assert found == {str(BLOCK): NEURONS}
    cures.apply(model, "test_time_registers", neurons=found)
    after = norms(model, images)
    assert share(after[:, 2:]) == 0
    assert float(after[:, 1].median()) > 3 * float(
        after[:, 2:].median()
    )  # the token between class and patches


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_the_shift_by_hand(images: torch.Tensor, class_token: bool, count: int) -> None:
    model = made(class_token)
    cures.apply(model, "test_time_registers", neurons={str(BLOCK): NEURONS}, count=count)
    mlp, seen = model.blocks[BLOCK].mlp, {}
    mlp.fc1.register_forward_hook(lambda m, a, out: seen.__setitem__("in", out))
    mlp.fc2.register_forward_pre_hook(lambda m, a: seen.__setitem__("out", a[0]))
    model(images)
    h = torch.nn.functional.gelu(seen["in"])
    first = int(class_token)
    for n in NEURONS:
        for b in range(len(images)):
            largest = max(float(h[b, i, n]) for i in range(first + count, h.shape[1]))
            for r in range(first, first + count):
                h[b, r, n] = largest
            for i in range(first + count, h.shape[1]):
                h[b, i, n] = 0.0
    torch.testing.assert_close(seen["out"], h)
    assert not model.reg_token.requires_grad
    assert not model.reg_token.any()


@torch.no_grad()
def test_it_is_saved_compiled_and_rebuilt(images: torch.Tensor) -> None:
    model = made()
    cures.apply(model, "test_time_registers", neurons=register_neurons(model, images, top=2))
    again = timm.create_model("vit_tiny_patch16_224", **SMALL)
    cures.reapply(again, json.loads(json.dumps(model.deepvit_cures)))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model(images))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs its neurons: find them by"),
        ({"neurons": {"9": [0]}}, "there is no block 9"),
        ({"neurons": {"0": [10**6]}}, "block 0 has no neuron 1000000"),
        ({"neurons": {"0": [0]}, "count": 0}, "count=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_and_unchanged(options: dict[str, object], said: str) -> None:
    model = made()
    keys = list(model.state_dict())
    with pytest.raises(UserError, match=said):
        cures.apply(model, "test_time_registers", **options)
    assert list(model.state_dict()) == keys


@torch.no_grad()
def test_a_network_without_outliers_says_so(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    with pytest.raises(UserError, match="no patch of these images"):
        register_neurons(model, images)
