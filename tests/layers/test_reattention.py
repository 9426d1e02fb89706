"""The layer against the official one (golden tensors), and against timm's Attention as its stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm.layers
import torch
from safetensors.torch import load_file
from torch import nn

from deepvit.errors import UserError
from deepvit.layers import ReAttention
from deepvit.ops import reattention_maps

GOLDEN = Path(__file__).parent.parent / "golden"
BACKENDS = ["reference", "streaming"]


def official(name, backend, dtype=torch.float32):
    golden = load_file(GOLDEN / f"layer_{name}.safetensors")
    layer = ReAttention(48, 4, rescale=name == "rescaled", backend=backend)
    layer.load_state_dict({key[6:]: x for key, x in golden.items() if key.startswith("state.")})
    return layer.to(dtype), golden


def distance(a, b):
    """Relative: the norm of the difference over the norm of the official tensor."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def maps(layer, x):
    batch, tokens, _ = x.shape
    q, k, _ = layer.qkv(x).view(batch, tokens, 3, 4, 12).permute(2, 0, 3, 1, 4)
    arguments = layer._norm_arguments() | {"process_group": None}
    theta, bias = layer.reatten_matrix.weight.view(4, 4), layer.reatten_matrix.bias
    return reattention_maps(q, k, theta, theta_bias=bias, output_scale=layer.output_scale, **arguments)[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "rescaled"])
def test_equals_the_official_layer(name, backend):
    layer, golden = official(name, backend)
    layer.eval()
    with torch.no_grad():
        assert distance(layer(golden["x"]), golden["eval.y"]) < 1e-5
        assert distance(maps(layer, golden["x"]), golden["eval.map"]) < 1e-5

    layer.train()
    x = golden["x"].clone().requires_grad_()
    y = layer(x)
    y.backward(golden["grad_out"])
    assert distance(y, golden["train.y"]) < 1e-5
    assert distance(x.grad, golden["train.grad_x"]) < 1e-5
    for key, parameter in layer.named_parameters():
        expected = golden[f"train.grad.{key}"]
        if key == "reatten_matrix.bias":
            # zero by algebra (the norm takes it away): what the official code has there is rounding
            assert (parameter.grad - expected).abs().max() < 1e-2 < 1e-3 * y.abs().sum()
        else:
            assert distance(parameter.grad, expected) < 1e-5, key
    assert distance(layer.var_norm.running_mean, golden["train.running_mean_after"]) < 1e-5
    assert distance(layer.var_norm.running_var, golden["train.running_var_after"]) < 1e-5
    assert layer.var_norm.num_batches_tracked == golden["state.var_norm.num_batches_tracked"] + 1
    layer, golden = official(name, backend)
    assert distance(maps(layer.train(), golden["x"]), golden["train.map"]) < 1e-5


@pytest.mark.parametrize("name", ["plain", "rescaled"])
def test_streaming_is_nearer_to_the_truth_than_the_official_float32(name):
    """In float64 the definition is exact; the official float32 tensors are up to 1e-5 away from it."""

    def gradients(layer, golden):
        dtype = layer.proj.weight.dtype
        y = layer.train()(golden["x"].to(dtype))
        y.backward(golden["grad_out"].to(dtype))
        return {key: p.grad for key, p in layer.named_parameters() if key != "reatten_matrix.bias"}

    exact = gradients(*official(name, "reference", torch.float64))
    for key, grad in gradients(*official(name, "streaming")).items():
        assert distance(grad, exact[key]) < 2e-6, key


@pytest.mark.parametrize("kwargs", [{}, {"norm": "none"}, {"init": "identity"}, {"rescale": True}], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qk_norm": True, "scale_norm": True, "norm_layer": nn.LayerNorm},
        {"gated": True, "proj_bias": False, "qkv_bias": False},
        {"attn_head_dim": 10, "dim_out": 20},
    ],
    ids=str,
)
def test_backends_agree_under_every_option(options, kwargs):
    torch.manual_seed(0)
    layer = ReAttention(24, 3, **options, **kwargs)
    x = torch.randn(2, 9, 24)
    results = []
    for backend in BACKENDS:
        layer.backend = backend
        results.append(layer.train()(x))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert results[0].shape == (2, 9, options.get("dim_out", 24))


def test_takes_the_place_of_timms_attention():
    """Same projections, same arguments, and with theta = 1 and no norm the same result."""
    options = {
        "qkv_bias": True,
        "qk_norm": True,
        "norm_layer": nn.LayerNorm,
        "attn_drop": 0.0,
        "proj_drop": 0.0,
    }
    ours = ReAttention(24, 3, init="identity", norm="none", **options).eval()
    timms = timm.layers.Attention(24, 3, **options).eval()
    missing = ours.load_state_dict(timms.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"reatten_matrix.weight", "reatten_matrix.bias"}
    assert not missing.unexpected_keys
    x = torch.randn(2, 9, 24)
    torch.testing.assert_close(ours(x), timms(x))
    for name in ("num_heads", "head_dim", "scale"):
        assert getattr(ours, name) == getattr(timms, name)


def test_in_a_timm_model():
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, img_size=32, attn_layer=ReAttention, num_classes=3
    )
    assert all(isinstance(block.attn, ReAttention) for block in model.blocks)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_initialisations():
    torch.manual_seed(0)
    theta = ReAttention(24, 12).reatten_matrix.weight
    assert theta.abs().max() <= 12**-0.5
    assert theta.std() > 0.3 * 12**-0.5
    identity = ReAttention(24, 12, init="identity").reatten_matrix
    assert torch.equal(identity.weight.view(12, 12), torch.eye(12))
    assert not identity.bias.any()


def test_dropouts_act_in_training_only():
    for option in ("attn_drop", "proj_drop"):
        layer, x = ReAttention(24, 3, norm="none", **{option: 0.5}), torch.randn(2, 9, 24)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_a_frozen_norm_uses_running_statistics():
    """Fine-tuning habits of batch norm work: var_norm.eval() freezes the statistics, the rest trains."""
    layer, x = ReAttention(24, 3), torch.randn(2, 9, 24)
    expected = layer.eval()(x)
    layer.train()
    layer.var_norm.eval()
    torch.testing.assert_close(layer(x), expected)
    assert layer.var_norm.num_batches_tracked == 0


def test_cumulative_momentum():
    layer, batches = ReAttention(24, 3), [torch.randn(2, 9, 24) for _ in range(3)]
    layer.var_norm.momentum = None
    seen = []
    for x in batches:
        layer(x)
        again = ReAttention(24, 3)
        again.load_state_dict(layer.state_dict())
        again.var_norm.momentum = 1.0
        again(x)
        seen.append(again.var_norm.running_var)
    torch.testing.assert_close(layer.var_norm.running_var, torch.stack(seen).mean(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 25}, "dim=25 must be a multiple of num_heads=3"),
        ({"init": "zeros"}, "init='zeros'.*official or identity"),
        ({"norm": "layer"}, "norm='layer'.*batch or none"),
        ({"backend": "flash"}, "backend='flash'.*auto, reference, streaming, native, triton"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ReAttention(**({"dim": 24, "num_heads": 3} | options))


def test_masks_are_refused():
    layer, x = ReAttention(24, 3), torch.randn(2, 9, 24)
    with pytest.raises(UserError, match="attn_mask"):
        layer(x, attn_mask=torch.zeros(9, 9))
    with pytest.raises(UserError, match="is_causal"):
        layer(x, is_causal=True)
