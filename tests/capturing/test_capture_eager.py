"""Eager attention in the many ways it is written: followed from the scores to the product by V."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import einsum, nn

from deepvit.capturing import capture

B, H, N, D = 2, 4, 9, 5


class Attention(nn.Module):
    num_heads = H

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.qkv = nn.Linear(H * D, 3 * H * D)
        self.mix = nn.Linear(H, H)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
        self.softmax, self.matrix, out = self.way(self, q, k, v)
        return out.transpose(1, 2).flatten(2)


def by_operator(self, q, k, v):
    attn = (q * D**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    return attn, attn, attn @ v


def by_einsum(self, q, k, v):
    attn = torch.softmax(einsum("b h i d, b h j d -> b h i j", q, k), -1)
    return attn, attn, einsum("bhij,bhjd->bhid", attn, v)


def heads_last(self, q, k, v):
    scores = einsum("bhid,bhjd->bhij", q, k)
    attn = F.softmax(scores, dim=-1).permute(0, 2, 3, 1)
    mixed = self.mix(attn)
    out = einsum("bijh,bhjd->bihd", mixed, v).transpose(1, 2)
    return attn.permute(0, 3, 1, 2), mixed.permute(0, 3, 1, 2), out


def values_first(self, q, k, v):
    attn = F.softmax(q @ k.mT, dim=-1)
    return attn, attn, (v.mT @ attn.transpose(-2, -1)).mT


def folded_heads(self, q, k, v):
    q, k, v = (t.reshape(B * H, N, D) for t in (q, k, v))
    attn = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
    out = torch.bmm(attn, v)
    whole = attn.view(B, H, N, N)
    return whole, whole, out.view(B, H, N, D)


def keys_first(self, q, k, v):
    attn = (k @ q.mT).softmax(-2).mT
    return attn, attn, attn @ v


def biased_and_cast(self, q, k, v):
    scores = q @ k.mT
    scores[:, :, 1:] = scores[:, :, 1:] + 0.3
    scores = scores.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), float("-inf"))
    attn = F.softmax(scores, dim=-1, dtype=torch.float64).to(q.dtype)
    return attn, attn, torch.matmul(attn, v)


def window_mask(self, q, k, v):
    scores = (q @ k.mT).view(1, B, H, N, N) + torch.zeros(B, 1, N, N)
    attn = scores.view(B, H, N, N).softmax(-1)
    return attn, attn, attn @ v


def talking_heads(self, q, k, v):
    scores = self.mix((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    attn = scores.softmax(-1)
    mixed = self.mix(rearrange(attn, "b h i j -> b i j h"))
    mixed = rearrange(mixed, "b i j h -> b h i j")
    return attn, mixed, mixed @ v


def convolved(self, q, k, v):
    attn = (q @ k.mT).softmax(-1)
    mixed = F.conv2d(attn, self.mix.weight[:, :, None, None], self.mix.bias)
    return attn, mixed, mixed @ v


def scaled_in_place(self, q, k, v):
    attn = (q @ k.mT).softmax(-1)
    before = attn.clone()
    attn *= 0.5
    attn[..., 0] = 0.0
    return before, attn, attn @ v


def model_of(way):
    torch.manual_seed(0)
    return Model(way).eval()


class Model(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential(nn.LayerNorm(H * D), Attention(way)))

    def forward(self, x):
        return self.blocks(x)


WAYS = [
    by_operator,
    by_einsum,
    heads_last,
    values_first,
    folded_heads,
    keys_first,
    biased_and_cast,
    window_mask,
    talking_heads,
    convolved,
    scaled_in_place,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("gradient", [False, True], ids=["no_grad", "grad"])
def test_the_map_that_multiplies_values_and_the_softmax_behind_it(way, gradient):
    model, x = model_of(way), torch.randn(B, N, H * D)
    with torch.set_grad_enabled(gradient):
        expected = model(x)
        with capture(model, qkv=True) as seen:
            out = model(x)
    layer = model.blocks[0][1]
    (key,) = seen.attention
    assert torch.equal(out, expected)
    assert torch.equal(seen.attention[key], layer.matrix)
    changed = not torch.equal(layer.matrix, layer.softmax)
    assert (key in seen.softmax) == changed
    assert torch.equal(seen.softmax.get(key, seen.attention[key]), layer.softmax)
    assert seen.checks[key].passed
    heads = seen.attention[key] @ seen.values[key]
    torch.testing.assert_close(heads.transpose(1, 2).flatten(2), out)
    q, k, _ = layer.qkv(model.blocks[0][0](x)).unflatten(-1, (3, H, D)).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(seen.keys[key], k)
    scale = D**-0.5 if way is by_operator else 1.0  # queries are those that meet the keys
    torch.testing.assert_close(seen.queries[key], q * scale)


def test_what_was_done_to_the_map_is_said():
    model = model_of(heads_last)
    with capture(model) as seen:
        model(torch.randn(B, N, H * D))
    assert seen.layout["blocks.0"].measured == "softmax map after linear, as it multiplies V"


def test_dropout_of_an_eager_map_gives_the_map_before_it():
    def way(self, q, k, v):
        attn = (q @ k.mT).softmax(-1)
        dropped = F.dropout(attn, 0.5, training=True)
        return attn, dropped, dropped @ v

    model = model_of(way)
    with capture(model) as seen:
        model(torch.randn(B, N, H * D))
    assert torch.equal(seen.attention["blocks.0"], model.blocks[0][1].softmax)
    assert not seen.softmax
    assert seen.layout["blocks.0"].measured == "softmax map before dropout"
    assert seen.checks["blocks.0"].passed


def test_a_softmax_that_is_no_attention_is_left_out_and_named():
    def way(self, q, k, v):
        gate = v.softmax(-1)
        attn = (q @ k.mT).softmax(-1)
        return attn, attn, attn @ (gate * v)

    model = model_of(way)
    with capture(model) as seen:
        model(torch.randn(B, N, H * D))
    assert len(seen.attention) == 1
    assert [s.reason for s in seen.skipped] == ["softmax of something that is no product of queries and keys"]
