"""What the streaming and native backends promise besides equality: memory, dropout, autocast, transforms, compile."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deepvit.layers import ReAttention
from deepvit.ops import reattention, streaming


def make(tokens, heads=3, width=8, batch=2, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(batch, heads, tokens, width, generator=draw, dtype=dtype).requires_grad_()
        for _ in range(3)
    )
    theta = torch.randn(heads, heads, generator=draw, dtype=dtype).requires_grad_()
    return q, k, v, theta


@pytest.mark.parametrize(("name", "dropout_p"), [("streaming", 0.0), ("streaming", 0.1), ("native", 0.0)])
def test_saved_bytes_grow_with_tokens_not_their_square(name, dropout_p):
    def saved_bytes(tokens, backend):
        q, k, v, theta = make(tokens)
        storages = {}

        def pack(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            reattention(q, k, v, theta, training=True, dropout_p=dropout_p, backend=backend)
        return sum(storages.values())

    small, large = saved_bytes(64, name), saved_bytes(512, name)
    assert large < 8.5 * small
    # the counter sees maps where maps are kept
    assert saved_bytes(512, "reference") > 30 * saved_bytes(64, "reference")


def dropped_maps(q, k, p, seed_state):
    """P after the very dropout that the streaming call draws from ``seed_state``, found through the operator.

    With theta = 1 in one head and V = the unit matrix, the inner operator's output *is* the map (minus 1/N).
    """
    maps = []
    for head in range(q.shape[1]):
        theta = torch.zeros(q.shape[1], q.shape[1], dtype=q.dtype)
        theta[head, head] = 1
        unit = torch.eye(q.shape[2], dtype=q.dtype).expand(*q.shape[:2], -1, -1)
        torch.set_rng_state(seed_state)
        o, _, _ = streaming.core(q, k, unit, theta, q.shape[3] ** -0.5, False, p)
        maps.append(o[:, head] + 1 / q.shape[2])
    return torch.stack(maps, 1)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_dropout_is_replayed_and_counted_in_the_statistics(norm):
    p = 0.25
    q, k, v, theta = make(24, dtype=torch.float64, width=24)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with torch.no_grad():
        P = torch.softmax(q @ k.mT * 24**-0.5, -1)
        kept = dropped_maps(q, k, p, state) > 1e-12
    fraction = kept.double().mean()
    assert abs(fraction - (1 - p)) < 0.02
    with torch.no_grad():
        torch.testing.assert_close(dropped_maps(q, k, p, state), P * kept / (1 - p))

    grad = torch.randn_like(v)
    torch.set_rng_state(state)
    running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    out = reattention(
        q, k, v, theta, norm=norm, training=True, dropout_p=p, backend="streaming",
        running_mean=running[0], running_var=running[1],
    )  # fmt: skip
    grads = torch.autograd.grad(out, (q, k, v, theta), grad)

    Z = torch.einsum("hg,bgmn->bhmn", theta, torch.softmax(q @ k.mT * 24**-0.5, -1) * kept / (1 - p))
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    Y = nn.functional.batch_norm(Z, mean, var, training=True) if norm == "batch" else Z
    torch.testing.assert_close(out, Y @ v)
    for ours, theirs in zip(grads, torch.autograd.grad(Y @ v, (q, k, v, theta), grad), strict=True):
        torch.testing.assert_close(ours, theirs)
    if norm == "batch":
        torch.testing.assert_close(running[0], mean)
        torch.testing.assert_close(running[1], var)


def test_dropout_differs_between_calls_and_is_off_in_evaluation():
    q, k, v, theta = make(16)
    args = {"norm": "none", "dropout_p": 0.5, "backend": "streaming"}
    assert not torch.equal(*(reattention(q, k, v, theta, training=True, **args) for _ in range(2)))
    assert torch.equal(*(reattention(q, k, v, theta, training=False, **args) for _ in range(2)))


@pytest.mark.parametrize("backend", ["reference", "streaming", "native"])
def test_autocast_gives_half_and_keeps_statistics_in_float32(backend):
    q, k, v, theta = make(33)
    mean, var = torch.zeros(3), torch.ones(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = reattention(q, k, v, theta, training=True, backend=backend, running_mean=mean, running_var=var)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
    assert theta.grad.dtype == torch.float32
    expected = [x.to(torch.bfloat16).float() for x in (q, k, v)]
    exact_mean, exact_var = torch.zeros(3), torch.ones(3)
    exact = reattention(
        *expected, theta, training=True, backend="reference", running_mean=exact_mean, running_var=exact_var
    )
    assert (out - exact).abs().max() < 2e-2 * exact.abs().max()
    # maps and statistics are float32 inside; 1 - 1e-1 is what momentum keeps of the old variance
    torch.testing.assert_close(var - 0.9, exact_var - 0.9, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(mean, exact_mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["reference", "streaming"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck(backend, norm, training):
    q, k, v, theta = make(5, heads=3, width=4, dtype=torch.float64)
    bias, weight, shift = (torch.randn(3, dtype=torch.float64).requires_grad_() for _ in range(3))
    running = {"running_mean": torch.full((3,), 0.1).double(), "running_var": torch.full((3,), 0.5).double()}

    def f(q, k, v, theta, bias, weight, shift):
        return reattention(
            q, k, v, theta, theta_bias=bias, norm=norm, norm_weight=weight, norm_bias=shift,
            training=training, backend=backend, **({} if training else running),
        )  # fmt: skip

    assert torch.autograd.gradcheck(f, (q, k, v, theta, bias, weight, shift), fast_mode=True)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("streaming", torch.float64, {}), ("native", torch.float32, {"rtol": 1e-4, "atol": 1e-4})],
)
def test_functional_transforms_agree_with_the_definition(name, dtype, tolerance):
    q, k, v, theta = (x.detach() for x in make(6, dtype=dtype))

    def loss(backend):
        return lambda q: reattention(q, k, v, theta, training=True, backend=backend).square().sum()

    def rows(backend):
        return lambda q: reattention(q, k, v, theta, training=True, backend=backend).sum((2, 3))

    def same(a, b):
        torch.testing.assert_close(a, b, **tolerance)

    same(torch.func.grad(loss(name))(q), torch.func.grad(loss("reference"))(q))
    same(torch.func.jacrev(rows(name))(q), torch.func.jacrev(rows("reference"))(q))
    many = torch.stack([q, 2 * q])
    each = torch.func.vmap(torch.func.grad(loss(name)))(many)
    same(each, torch.stack([torch.func.grad(loss("reference"))(x) for x in many]))


@pytest.mark.parametrize("backend", ["streaming", "native"])
def test_second_derivative_is_refused(backend):
    q, k, v, theta = make(6)
    out = reattention(q, k, v, theta, training=True, backend=backend)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="reference"):
        first.sum().backward()


def test_custom_operators_are_registered_right():
    q, k, v, theta = make(6, width=4)
    seed = torch.tensor(3)
    for p in (0.0, 0.2):
        args = (q, k, v, theta, seed if p else None, 0.5, True, p)
        torch.library.opcheck(torch.ops.deepvit.streaming_core, args)
    torch.library.opcheck(torch.ops.deepvit.native_core, (q, k, v, theta, None, 0.5, True, 0.0))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backend", ["streaming", "native"])
def test_compile_sees_one_graph_and_gives_the_same(backend, training):
    torch.manual_seed(0)
    layer, x = ReAttention(24, 3, backend=backend).train(training), torch.randn(2, 10, 24)
    twin = ReAttention(24, 3, backend=backend).train(training)
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    a, b = layer(x), compiled(x)
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(layer.var_norm.running_var, twin.var_norm.running_var)
    assert layer.var_norm.num_batches_tracked == twin.var_norm.num_batches_tracked


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
def test_compiled_training_with_gradient_checkpointing():
    """Inductor itself: the other backends do not divide the graph into forward and backward as it does."""
    torch.manual_seed(0)
    layer, x = ReAttention(24, 3), torch.randn(2, 10, 24)
    twin = ReAttention(24, 3)
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(lambda x: checkpoint(twin, x, use_reentrant=False))
    a, b = layer(x), compiled(x)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.var_norm.running_var, twin.var_norm.running_var)


@pytest.mark.parametrize("backend", ["streaming", "native"])
def test_export_of_the_layer_in_evaluation(backend):
    layer, x = ReAttention(24, 3, backend=backend).eval(), torch.randn(2, 10, 24)
    shapes = ({0: torch.export.Dim("images", min=1, max=64)}, None, None)
    program = torch.export.export(layer, (x,), dynamic_shapes=shapes[:1])
    other = torch.randn(5, 10, 24)
    torch.testing.assert_close(program.module()(other), layer(other))


def test_a_torch_function_mode_sees_the_whole_call():
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is reattention:
                seen.append((len(args), set(kwargs)))
            return func(*args, **(kwargs or {}))

    layer, x = ReAttention(24, 3).eval(), torch.randn(2, 10, 24)
    expected = layer(x)
    with Watch():
        torch.testing.assert_close(layer(x), expected)
    assert len(seen) == 1
    assert seen[0][0] == 4
    assert {"theta_bias", "norm", "running_var", "output_scale", "training"} <= seen[0][1]
