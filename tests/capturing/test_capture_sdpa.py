"""Maps behind scaled_dot_product_attention, with every option it has, against the plain formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepvit.capturing import capture


class Block(nn.Module):
    """Calls attention with whatever the test gives it."""

    def __init__(self, inputs, options):
        super().__init__()
        self.inputs, self.options = inputs, options
        self.lin = nn.Identity()

    def forward(self, x):
        self.out = F.scaled_dot_product_attention(*self.inputs, **self.options)
        return x


class Model(nn.Module):
    def __init__(self, *inputs, **options):
        super().__init__()
        self.blocks = nn.ModuleList([Block(inputs, options)])

    def forward(self, x):
        return self.blocks[0](x)


def tensors(*sizes, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=g, dtype=torch.float64).to(dtype) for s in sizes]


def seen_by(model, images=2):
    with capture(model, tokens=False, qkv=True) as seen:
        model(torch.zeros(images, 5, 8))
    return seen


def plain(q, k, scale=None, bias=None):
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores if bias is None else scores + bias).softmax(-1)


q, k, v = tensors((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8))
wide_k, wide_v = tensors((2, 3, 7, 8), (2, 3, 7, 6))
keep = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.4
keep[..., 0] = True
bias = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("inputs", "options", "expected"),
    [
        ((q, k, v), {}, plain(q, k)),
        ((q, k, v), {"scale": 0.9}, plain(q, k, scale=0.9)),
        ((q, k, v), {"attn_mask": keep}, plain(q, k, bias=torch.zeros(()).where(keep, -math.inf))),
        ((q, k, v), {"attn_mask": bias}, plain(q, k, bias=bias)),
        ((q, wide_k, wide_v), {}, plain(q, wide_k)),
        (
            (q, wide_k, wide_v),
            {"is_causal": True},
            plain(q, wide_k, bias=torch.full((5, 7), -math.inf).triu(1)),
        ),
        ((q.double(), k.double(), v.double()), {}, plain(q.double(), k.double())),
    ],
    ids=["plain", "scale", "bool mask", "float mask", "more keys", "causal from the upper left", "float64"],
)
def test_every_option_means_what_torch_defines(inputs, options, expected):
    model = Model(*inputs, **options)
    seen = seen_by(model)
    got = seen.attention["blocks.0"]
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(got @ seen.values["blocks.0"], model.blocks[0].out, atol=1e-6, rtol=0)
    assert seen.checks["blocks.0"].passed


def test_grouped_heads_share_keys_and_values():
    query, key, value = tensors((2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 8))
    seen = seen_by(Model(query, key, value, enable_gqa=True))
    assert seen.keys["blocks.0"].shape == (2, 4, 5, 8)
    torch.testing.assert_close(seen.attention["blocks.0"], plain(query, key[:, [0, 0, 1, 1]]))


def test_a_row_without_keys_is_zero():
    none = keep.clone()
    none[0, 0, 2] = False
    seen = seen_by(Model(q, k, v, attn_mask=none))
    assert seen.attention["blocks.0"][0, :, 2].abs().max() == 0
    assert seen.checks["blocks.0"].passed


def test_one_head_without_a_head_axis():
    query, key, value = tensors((2, 5, 8), (2, 5, 8), (2, 5, 8))
    seen = seen_by(Model(query, key, value))
    assert seen.attention["blocks.0"].shape == (2, 1, 5, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_maps(dtype):
    inputs = tensors((2, 3, 5, 8), (2, 3, 5, 8), (2, 3, 5, 8), dtype=dtype)
    seen = seen_by(Model(*inputs))
    torch.testing.assert_close(seen.attention["blocks.0"], plain(inputs[0].float(), inputs[1].float()))
    assert seen.checks["blocks.0"].passed


def test_dropout_gives_the_map_before_it_and_draws_the_same_numbers():
    model = Model(q, k, v, dropout_p=0.5)
    torch.manual_seed(3)
    model(torch.zeros(2, 5, 8))
    expected, after = model.blocks[0].out, torch.rand(())
    torch.manual_seed(3)
    seen = seen_by(model)
    assert torch.equal(model.blocks[0].out, expected)
    assert torch.equal(torch.rand(()), after)
    torch.testing.assert_close(seen.attention["blocks.0"], plain(q, k))
    assert "dropout of 0.5" in seen.layout["blocks.0"].measured
    assert "without its dropout" in seen.checks["blocks.0"].how


def test_more_heads_than_fit_one_buffer(monkeypatch):
    monkeypatch.setattr("deepvit.capturing.maps._BUFFER_BYTES", 1)
    model = Model(q, k, v, attn_mask=keep)
    torch.testing.assert_close(
        seen_by(model).attention["blocks.0"], plain(q, k, bias=torch.zeros(()).where(keep, -math.inf))
    )
