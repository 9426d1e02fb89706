"""The attention-map regulariser against loops, from maps and from queries and keys."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from deepvit.errors import UserError
from deepvit.losses import AttentionInputs, attention_cosine
from deepvit.losses.attention_inputs import head_mix

B, H, N, D = 2, 3, 6, 4


def queries(blocks=3, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(0)
    return [
        (scale * torch.randn(2, B, H, N, D, generator=g, dtype=torch.float64)).to(dtype).unbind(0)
        for _ in range(blocks)
    ]


def softmax_map(q, k):
    return torch.softmax(q @ k.transpose(-2, -1) * D**-0.5, -1)


def slow(maps, form, prefix=0):
    values = []
    for a, b in pairwise(maps):
        for image in range(B):
            x, y = a[image, :, prefix:, prefix:], b[image, :, prefix:, prefix:]
            n = x.shape[-1]
            if form == "columns":
                vectors = [(x[h, :, t], y[h, :, t]) for h in range(H) for t in range(n)]
            else:
                vectors = [(x[:, m, t], y[:, m, t]) for m in range(n) for t in range(n)]
            values += [u @ v / (u.norm() * v.norm()) for u, v in vectors]
    return torch.stack(values).mean()


@pytest.mark.parametrize("form", ["columns", "official"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_from_queries_and_from_maps_equal_the_loop(form, prefix):
    fast, plain = queries(), queries()
    fast = [(q.requires_grad_(), k.requires_grad_()) for q, k in fast]
    plain = [(q.requires_grad_(), k.requires_grad_()) for q, k in plain]
    value = attention_cosine([AttentionInputs(q, k, D**-0.5) for q, k in fast], form, prefix_tokens=prefix)
    maps = [softmax_map(q, k) for q, k in plain]
    expected = slow(maps, form, prefix)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(attention_cosine(maps, form, prefix_tokens=prefix), expected)
    (3 * value).backward(), (3 * expected).backward()
    for mine, theirs in zip(fast, plain, strict=True):
        torch.testing.assert_close(mine[0].grad, theirs[0].grad)
        torch.testing.assert_close(mine[1].grad, theirs[1].grad)


@pytest.mark.parametrize("form", ["columns", "official"])
def test_reattention_maps_after_theta_and_norm(form):
    torch.manual_seed(0)
    layers = [(nn.Conv2d(H, H, 1).double(), nn.BatchNorm2d(H).double()) for _ in range(2)]
    inputs, maps = [], []
    for (q, k), (theta, norm) in zip(queries(2), layers, strict=True):
        inputs.append(AttentionInputs(q, k, D**-0.5, head_mix(theta.weight, theta.bias, norm)))
        maps.append(
            nn.functional.batch_norm(
                theta(softmax_map(q, k)), None, None, norm.weight, norm.bias, training=True
            )
        )
    value, expected = attention_cosine(inputs, form), slow(maps, form)
    torch.testing.assert_close(value, expected)
    theta = layers[0][0].weight
    (mine,) = torch.autograd.grad(value, theta)
    (theirs,) = torch.autograd.grad(expected, theta)
    torch.testing.assert_close(mine, theirs)
    assert (layers[0][1].running_mean == 0).all()  # looking must not move the running statistics


def test_extremes():
    uniform = torch.full((1, 2, 5, 5), 0.2)
    assert attention_cosine([uniform, uniform]).item() == pytest.approx(1)
    first, second = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    first[..., :2, :], second[..., 2:, :] = 1, 1  # no row in common: columns are orthogonal
    assert attention_cosine([first, second]).item() == 0
    assert attention_cosine([first + 1e-3, first + 1e-3], "official").item() == pytest.approx(1)


@pytest.mark.parametrize("form", ["columns", "official"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_hostile_input_stays_finite(form, dtype, scale):
    blocks = [(q.requires_grad_(), k.requires_grad_()) for q, k in queries(3, dtype, scale)]
    value = attention_cosine([AttentionInputs(q, k, D**-0.5) for q, k in blocks], form)
    assert value.dtype == torch.float32
    assert 0 <= value.item() <= 1 + 1e-6
    value.backward()
    assert all(x.grad.isfinite().all() for pair in blocks for x in pair)


def test_one_token_and_one_image():
    q = torch.randn(1, H, 1, D, requires_grad=True)
    value = attention_cosine([AttentionInputs(q, q, 0.5)] * 2)
    assert value.item() == 1
    value.backward()
    assert q.grad.isfinite().all()


def test_prefix_rows_and_columns_of_maps_are_ignored():
    maps = [softmax_map(q, k) for q, k in queries(2)]
    changed = [m.clone() for m in maps]
    for m in changed:
        m[..., :2, :], m[..., :, :2] = 7, 9
    torch.testing.assert_close(
        attention_cosine(changed, prefix_tokens=2), attention_cosine([m[..., 2:, 2:] for m in maps])
    )


def saved_shapes(value):
    """Shapes of every tensor that the graph behind ``value`` keeps for its backward pass."""
    shapes, waiting, seen = [], [value.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]
        kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        kept += list(getattr(node, "saved_tensors", ()))
        shapes += [tuple(x.shape) for x in kept if isinstance(x, torch.Tensor)]
    return shapes


def test_no_map_is_kept_for_the_backward_pass():
    blocks = [(q.requires_grad_(), k.requires_grad_()) for q, k in queries(4)]
    value = attention_cosine([AttentionInputs(q, k, D**-0.5) for q, k in blocks])
    assert (1, H, N, D) in saved_shapes(value)
    assert not [shape for shape in saved_shapes(value) if shape[-2:] == (N, N)]
    # The walk itself must be able to find one.
    with_maps = attention_cosine([softmax_map(q, k) for q, k in blocks])
    assert [shape for shape in saved_shapes(with_maps) if shape[-2:] == (N, N)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: attention_cosine([m, m], "rows"), "no form 'rows'; choose from columns, official"),
        (lambda m: attention_cosine([m]), "was given 1"),
        (lambda m: attention_cosine([m, m[:, :2]]), "maps of one shape"),
        (lambda m: attention_cosine([m, m], prefix_tokens=N), "leave no patch token"),
    ],
)
def test_mistakes_are_one_clear_line(call, words):
    with pytest.raises(UserError, match=words):
        call(torch.rand(B, H, N, N))
