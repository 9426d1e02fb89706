"""The Triton kernels, interpreted, against the formulas in float64; test_triton.py runs this file.

It needs a process of its own, with TRITON_INTERPRET=1, and so is not collected by name: whether Triton
compiles or interprets is settled when it is first imported, and no other test may find it settled this way.
"""

from __future__ import annotations

import os

import pytest
import torch

import deepvit.ops
from deepvit.ops import triton_backend
from deepvit.ops.triton_backend import core

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py instead"

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
TOKENS, WIDTHS = (1, 17, 33, 65), (16, 33, 35, 64)
# every number of heads with every number of tokens, the head widths dealt out evenly
SQUARE = [(h, n, WIDTHS[(i + j) % 4]) for i, h in enumerate((1, 3, 12)) for j, n in enumerate(TOKENS)]


def timed(cases):
    """The same cases, the large ones, which the interpreter takes seconds for, marked slow."""
    return [pytest.param(*c, marks=[pytest.mark.slow] if c[0] * c[1] > 150 else []) for c in cases]


def formulas(q, k, v, theta, scale):
    """o and c as ops/core.py states them, in float64."""
    maps = torch.softmax(scale * q @ k.mT, dim=-1) - 1 / q.shape[2]
    return torch.einsum("hg,bgmn->bhmn", theta, maps) @ v, torch.einsum("bgmn,bhmn->gh", maps, maps)


def packed(heads, tokens, dim, dtype, batch=2, spread=1.0):
    """q, k, v as every ViT makes them: views into one [B, N, 3, H, D]."""
    qkv = torch.randn(batch, tokens, 3, heads, dim) * spread
    return qkv.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)


def compare(inputs, dtype, stats=True):
    """Output, statistics and every gradient against the formulas, from the same rounded inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    scale = inputs[0].shape[-1] ** -0.5
    o, c, e = core(*inputs, scale, stats, 0.0)
    o_exact, c_exact = formulas(*exact, scale)
    do = torch.randn(o.shape).to(dtype)
    # of a size that makes its part of dP count as much as that of do
    dc = torch.randn(c.shape) / o.shape[2] if stats else torch.zeros(c.shape)
    found = [o, c, *torch.autograd.grad((o, c), inputs, (do, dc))]
    wanted = [o_exact, c_exact, *torch.autograd.grad((o_exact, c_exact), exact, (do.double(), dc.double()))]
    assert e is None
    assert o.dtype == dtype
    assert c.dtype == torch.float32
    for name, a, b in zip(("o", "c", "dq", "dk", "dv", "dtheta"), found, wanted, strict=True):
        if name == "c" and not stats:
            assert not a.any()
            continue
        assert torch.isfinite(a).all(), name
        # one token: every map is 1, and these are zero up to the rounding of terms that cancel
        floor = TOLERANCE[dtype] * b.numel() ** 0.5 if o.shape[2] == 1 else 0.0
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm() + floor, name


@pytest.mark.parametrize(("heads", "tokens", "dim"), timed(SQUARE))
def test_equals_the_formulas_with_every_gradient(heads, tokens, dim):
    torch.manual_seed(tokens)
    batch = 1 if heads * tokens > 500 else 2  # the interpreter is slow
    compare([*packed(heads, tokens, dim, torch.float32, batch), torch.randn(heads, heads)], torch.float32)


@pytest.mark.parametrize(("heads", "tokens", "dim"), timed(SQUARE[::2]))
def test_bfloat16(heads, tokens, dim):
    torch.manual_seed(tokens)
    compare([*packed(heads, tokens, dim, torch.bfloat16, 1), torch.randn(heads, heads)], torch.bfloat16)


@pytest.mark.parametrize(("heads", "tokens", "dim"), timed([(3, 33, 64), (16, 18, 16)]))
def test_float16(heads, tokens, dim):
    torch.manual_seed(0)
    compare([*packed(heads, tokens, dim, torch.float16, batch=1), torch.randn(heads, heads)], torch.float16)


def test_without_statistics():
    torch.manual_seed(0)
    compare([*packed(3, 33, 16, torch.float32), torch.randn(3, 3)], torch.float32, stats=False)


def test_inputs_with_any_strides():
    torch.manual_seed(0)
    q = torch.randn(2, 3, 19, 17).transpose(2, 3)  # head width is not the innermost
    k = torch.randn(2, 34, 3, 38)[:, ::2, :, ::2].transpose(1, 2)
    v = torch.randn(1, 3, 17, 19).expand(2, 3, 17, 19)
    compare([q, k, v, torch.randn(3, 3).T], torch.float32)


def test_reads_and_leaves_nothing_beyond_its_tensors():
    torch.manual_seed(0)
    views = []
    for _ in range(3):  # tokens 5 to 21 and widths 3 to 19 of memory that is NaN everywhere else
        room = torch.full((2, 3, 30, 24), float("nan"))
        room[:, :, 5:22, 3:20] = torch.randn(2, 3, 17, 17)
        views.append(room[:, :, 5:22, 3:20])
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)  # empty tensors are handed out full of NaN
    try:
        compare([*views, torch.randn(3, 3)], torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_statistics_of_nearly_uniform_maps(dtype):
    # a fresh network: maps differ from 1/N by about one part in a thousand: bfloat16 has no such digits
    torch.manual_seed(0)
    q, k, v = packed(3, 65, 16, dtype, spread=0.03)
    theta = torch.randn(3, 3)
    o, c, _ = core(q, k, v, theta, 0.25, True, 0.0)
    o_exact, c_exact = formulas(*(x.double() for x in (q, k, v, theta)), 0.25)
    assert (c.double() - c_exact).norm() < max(1e-4, TOLERANCE[dtype]) * c_exact.norm()
    assert (o.double() - o_exact).norm() < max(1e-4, TOLERANCE[dtype]) * o_exact.norm()


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_whose_exponentials_overflow(sign):
    torch.manual_seed(0)
    q, k, v = packed(3, 33, 16, torch.bfloat16)
    inputs = [q + 12, k + 12 * sign, v, torch.randn(3, 3)]  # scores near 576, or all near -576
    inputs = [x.detach().requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    o, _, _ = core(*inputs, 0.25, False, 0.0)
    o_exact, _ = formulas(*exact, 0.25)
    grads = torch.autograd.grad(o, inputs, torch.ones_like(o))
    dv_exact = torch.autograd.grad(o_exact, exact[2], torch.ones_like(o_exact))[0]
    for a, b in ((o, o_exact), (grads[2], dv_exact)):
        assert (a.double() - b).norm() <= TOLERANCE[torch.bfloat16] * b.norm()
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_same_bits_every_time():
    torch.manual_seed(0)
    q, k, v = packed(3, 33, 16, torch.float32)
    first, second = (core(q, k, v, torch.eye(3), 0.25, True, 0.0) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def whole_operator(backend, q, k, v, theta, training):
    """reattention with its norm: output, running statistics, and gradients of everything learned."""
    heads, tokens = q.shape[1:3]
    generator = torch.Generator().manual_seed(1)
    affine = [torch.randn(heads, generator=generator).to(theta.dtype).requires_grad_() for _ in range(3)]
    mean, var = theta.new_full((heads,), 1 / tokens), theta.new_full((heads,), 0.01)
    inputs = [x.detach().requires_grad_() for x in (q, k, v, theta)]
    out = deepvit.ops.reattention(
        *inputs, theta_bias=affine[0], norm_weight=affine[1], norm_bias=affine[2], running_mean=mean,
        running_var=var, training=training, backend=backend,
    )  # fmt: skip
    loss = (out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum()
    return [out, mean, var, *torch.autograd.grad(loss, [*inputs, *affine[1:]])]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_whole_operator_equals_reference_in_float64(training, dtype):
    torch.manual_seed(0)
    inputs = [*packed(3, 33, 35, dtype), torch.eye(3) + 0.2 * torch.randn(3, 3)]
    found = whole_operator("triton", *inputs, training)
    wanted = whole_operator("reference", *(x.double() for x in inputs), training)
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b).norm() <= TOLERANCE[dtype] * b.norm()


@pytest.mark.slow
def test_custom_operators_pass_torchs_own_checks():
    torch.manual_seed(0)
    inputs = [*(torch.randn(1, 2, 5, 16) for _ in range(3)), torch.randn(2, 2)]
    inputs = [x.requires_grad_() for x in inputs]
    torch.library.opcheck(triton_backend._forward, (*inputs, 0.25, True))
    with torch.no_grad():
        o, c, lse = triton_backend._forward(*inputs, 0.25, True)
        torch.library.opcheck(triton_backend._backward, (o, c, *inputs, lse, 0.25, True))


class Attention(torch.nn.Module):
    """The operator as a module, for torch.compile and torch.export."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.eye(3) + 0.1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, q, k, v):
        return deepvit.ops.reattention(
            q, k, v, self.theta, running_mean=self.mean, running_var=self.var, training=self.training,
            backend="triton",
        )  # fmt: skip


def test_compiles_in_one_graph_with_its_backward():
    torch.manual_seed(0)
    q, k, v = packed(3, 17, 16, torch.float32)
    plain, compiled = Attention(), torch.compile(Attention(), fullgraph=True, backend="aot_eager")
    for module in (plain, compiled):
        module(q, k, v).square().sum().backward()
    torch.testing.assert_close(compiled._orig_mod.theta.grad, plain.theta.grad)
    torch.testing.assert_close(compiled._orig_mod.var, plain.var)


def test_exports_as_one_node_for_any_batch():
    torch.manual_seed(0)
    module = Attention().eval()
    qkv = packed(3, 17, 16, torch.float32)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, qkv, dynamic_shapes=({0: batch},) * 3)
    names = [str(node.target) for node in program.graph.nodes]
    assert names.count("deepvit.triton_core.default") == 1
    other = packed(3, 17, 16, torch.float32, batch=3)
    torch.testing.assert_close(program.module()(*other), module(*other))


def test_autocast_runs_it_in_bfloat16_with_float32_theta():
    torch.manual_seed(0)
    qkv = packed(3, 17, 16, torch.float32)
    module = Attention()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(*qkv)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert module.theta.grad.dtype == torch.float32


def test_dropout_is_refused_here_too():
    q, k, v = packed(3, 17, 16, torch.float32)
    with pytest.raises(ValueError, match="backend='triton' cannot run here: it has no attention dropout"):
        deepvit.ops.reattention(
            q, k, v, torch.eye(3), norm="none", training=True, dropout_p=0.1, backend="triton"
        )
