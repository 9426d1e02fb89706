"""Batches of no image, and tensors without memory: shapes, gradients and statistics as of timm's plain attention."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from deepvit.layers import ReAttention

BACKENDS = ["auto", "reference", "streaming", "native"]
HEADS, DIM = 3, 24


def made(backend, **options):
    return ReAttention(DIM, HEADS, backend=backend, **options)


def run(layer, x):
    """Shape, strides and dtype of the output and of every gradient."""
    x = x.clone().requires_grad_()
    y = layer(x)
    y.sum().backward()
    grads = {"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}
    return {name: (tuple(g.shape), g.dtype, g.device) for name, g in {"y": y, **grads}.items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("shape", [(0, 9, DIM), (2, 0, DIM), (0, 0, DIM)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch(backend, shape, training):
    """As torch's batch norm: zero gradients, running statistics unchanged, and the batch is counted."""
    layer = made(backend).train(training)
    plain = Attention(DIM, HEADS, qkv_bias=True)
    x = torch.zeros(shape)
    found, expected = run(layer, x), run(plain, x)
    assert {name: found[name] for name in expected} == expected
    assert all(not p.grad.any() for p in layer.parameters())
    torch_norm = nn.BatchNorm2d(HEADS).train(training)
    torch_norm(torch.zeros(0, HEADS, 9, 9))
    for name, buffer in torch_norm.named_buffers():
        assert torch.equal(buffer, layer.var_norm.get_buffer(name)), name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_empty_batch_without_a_norm_and_with_dropout(training):
    for backend in ("auto", "reference", "streaming"):
        for options in ({"norm": "none"}, {"attn_drop": 0.5}):
            assert run(made(backend, **options).train(training), torch.zeros(0, 9, DIM))["y"][0] == (
                0,
                9,
                DIM,
            )


def test_an_empty_batch_through_every_wrapping():
    layer, x = made("auto").eval(), torch.zeros(0, 9, DIM)
    assert torch.compile(layer, backend="aot_eager")(x).shape == x.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert torch.jit.script(layer)(x).shape == torch.fx.symbolic_trace(layer)(x).shape == x.shape
    assert torch.func.vmap(layer)(torch.zeros(2, 0, 9, DIM)).shape == (2, 0, 9, DIM)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_the_meta_device(backend, training):
    layer = made(backend).train(training).to("meta")
    plain = Attention(DIM, HEADS, qkv_bias=True).to("meta")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.zeros(2, 9, DIM, device="meta", dtype=dtype)
        found, expected = run(copy.deepcopy(layer).to(dtype), x), run(copy.deepcopy(plain).to(dtype), x)
        assert {name: found[name] for name in expected} == expected
        assert found["reatten_matrix.weight"][0] == (HEADS, HEADS, 1, 1)
    with torch.no_grad():
        assert layer(torch.zeros(0, 9, DIM, device="meta")).shape == (0, 9, DIM)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_as_fake_tensors(backend, training):
    with FakeTensorMode():
        layer = made(backend, attn_drop=0.0 if backend == "native" else 0.1).train(training)
        plain = Attention(DIM, HEADS, qkv_bias=True)
        found, expected = run(layer, torch.zeros(2, 9, DIM)), run(plain, torch.zeros(2, 9, DIM))
        assert {name: found[name] for name in expected} == expected
        with torch.no_grad():
            y = layer(torch.zeros(2, 9, DIM))
        assert isinstance(y, FakeTensor)
        assert y.shape == (2, 9, DIM)


@pytest.mark.parametrize("name", ["deepvit_tiny_d16_patch4_32", "deepvit_s_patch16_224"])
def test_whole_models_without_memory(name):
    options = {"img_size": 32, "depth": 2, "num_classes": 5}
    with torch.device("meta"):
        model = timm.create_model(name, **options)
        model(torch.zeros(2, 3, 32, 32)).sum().backward()
        assert all(p.grad.shape == p.shape for p in model.parameters())
    model = timm.create_model(name, **options)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert model.eval()(torch.zeros(0, 3, 32, 32)).shape == (0, 5)
