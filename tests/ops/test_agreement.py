"""The streaming and native backends equal the definition: output, every gradient and the running statistics.

``reference`` computes in float64 whatever its inputs are: in float32 the definition as written loses up to
three digits where maps are nearly uniform (the norm divides by a tiny deviation), while these two, whose
maps are centred, do not.
"""

from __future__ import annotations

import pytest
import torch

from deepvit.errors import UserError
from deepvit.ops import lanes, reattention

FAST = ("streaming", "native")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HEADS = {1: (1, 2, 12), 17: (1, 2, 3, 5, 8, 12), 65: (1, 2, 3, 6, 12), 197: (1, 2, 3, 12), 577: (1, 12)}
SIZES = [
    (tokens, width, heads)
    for tokens, some in HEADS.items()
    for width in (16, 32, 33, 35, 64)
    for heads in some
]
"""(tokens, head width, heads)"""


def problem(tokens, width, heads, dtype, fresh, batch=2, seed=0):
    """Inputs of one call; ``fresh``: scores near zero, as in a network that was not trained yet."""
    draw = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, tokens, 3, heads, width, generator=draw)
    if fresh:
        qkv[:, :, :2] *= 0.1
    theta = (torch.rand(heads, heads, generator=draw) * 2 - 1) * heads**-0.5
    vectors = torch.randn(5, heads, generator=draw)
    leaves = {
        "qkv": qkv.to(dtype),
        "theta": theta,
        "theta_bias": 0.3 * vectors[0],
        "norm_weight": 1 + 0.3 * vectors[1],
        "norm_bias": 0.3 * vectors[2],
    }
    buffers = {"running_mean": 0.1 * vectors[3], "running_var": 0.5 + vectors[4].abs()}
    grad = torch.randn(batch, heads, tokens, width, generator=draw).to(dtype)
    return leaves, buffers, grad


def run(backend, leaves, buffers, grad, **options):
    """Output, gradients and buffers after one call, all as one dictionary."""
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    buffers = {name: x.clone() for name, x in buffers.items()}
    rest = {name: x for name, x in leaves.items() if name != "qkv"}
    q, k, v = (x.transpose(1, 2) for x in leaves["qkv"].unbind(2))
    out = reattention(q, k, v, **rest, **buffers, backend=backend, **options)
    out.backward(grad)
    return {"out": out.detach()} | {f"d{name}": x.grad for name, x in leaves.items()} | buffers


def assert_close(result, expected, tolerance, zero=()):
    for name, x in expected.items():
        if name in zero:
            continue
        error = (result[name].double() - x.double()).abs().max() / x.double().abs().max().clamp_min(1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


def truth(leaves, buffers, grad, **options):
    """The definition in float64."""
    leaves, buffers = ({name: x.double() for name, x in group.items()} for group in (leaves, buffers))
    return run("reference", leaves, buffers, grad.double(), **options)


def cancelled(tokens, heads, training):
    """Gradients that are zero by algebra, of which rounding (or eps) alone is left."""
    if not training:
        return []
    # The norm takes away theta's bias, and with one head theta's size. With one token every map is the
    # number 1, whose deviation from the mean is 0.
    return ["dtheta_bias"] + ["dtheta"] * (heads == 1 or tokens == 1) + ["dnorm_weight"] * (tokens == 1)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("fresh", [False, True], ids=["", "fresh"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("backend", "size"),
    [("streaming", size) for size in SIZES] + [("native", size) for size in SIZES if size[2] > 2],
    ids=str,
)
def test_a_fast_backend_equals_the_definition(backend, size, dtype, fresh, training):
    leaves, buffers, grad = problem(*size, dtype, fresh, batch=1 if size[0] > 500 else 2)
    result = run(backend, leaves, buffers, grad, training=training)
    assert result["out"].dtype == dtype
    zero = cancelled(size[0], size[2], training)
    assert_close(result, run("reference", leaves, buffers, grad, training=training), TOLERANCE[dtype], zero)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    "options", [{"norm": "none"}, {"output_scale": 0.2}, {"scale": 0.5, "eps": 0.1, "momentum": 0.7}], ids=str
)
@pytest.mark.parametrize("backend", FAST)
def test_options(backend, options, training):
    leaves, buffers, grad = problem(33, 24, 4, torch.float32, fresh=False)
    result = run(backend, leaves, buffers, grad, training=training, **options)
    expected = truth(leaves, buffers, grad, training=training, **options)
    if options.get("norm") == "none":
        assert result.pop("dnorm_weight") is None
        assert result.pop("dnorm_bias") is None
        expected = {name: x for name, x in expected.items() if name in result}
        assert torch.equal(result["running_mean"], buffers["running_mean"])
    assert_close(result, expected, 1e-5, cancelled(33, 4, training and options.get("norm") != "none"))


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_parameters_may_be_absent(backend):
    leaves, _, grad = problem(17, 8, 3, torch.float32, fresh=False)
    ones = {"norm_weight": torch.ones(3), "norm_bias": torch.zeros(3), "theta_bias": torch.zeros(3)}
    bare = {name: leaves[name] for name in ("qkv", "theta")}
    expected = run(backend, bare | ones, {}, grad, training=True)
    result = run(backend, bare, {}, grad, training=True)
    assert_close(result, {name: expected[name] for name in result}, 1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", FAST)
def test_memory_that_was_never_written_is_never_read(backend, training, monkeypatch):
    """Fresh buffers hold NaN here; a block that is read before it is written would spread it."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poisoned(make):
        return lambda *args, **kwargs: fill(make(*args, **kwargs))

    def fill(x):
        return x.fill_(float("nan")) if x.is_floating_point() else x

    leaves, buffers, grad = problem(197, 35, 4, torch.float32, fresh=False, batch=3)
    expected = truth(leaves, buffers, grad, training=training)
    for target, name, make in (
        (torch, "empty", empty),
        (torch, "empty_like", empty_like),
        (torch.Tensor, "new_empty", new_empty),
    ):
        monkeypatch.setattr(target, name, poisoned(make))
    lanes.release()
    result = run(backend, leaves, buffers, grad, training=training)
    monkeypatch.undo()
    assert_close(result, expected, 1e-5, cancelled(197, 4, training))


@pytest.mark.parametrize("backend", ["reference", "streaming"])
def test_running_variance_is_unbiased(backend):
    """2 x 3 x 3 entries a head: 18 / 17 is a difference that a test can see."""
    leaves, buffers, grad = problem(3, 8, 4, torch.float64, fresh=False)
    leaves = {name: x.double() for name, x in leaves.items()}
    buffers = {name: x.double() for name, x in buffers.items()}
    result = run(backend, leaves, buffers, grad, training=True, momentum=1.0)
    q, k, _ = (x.transpose(1, 2) for x in leaves["qkv"].unbind(2))
    P = torch.softmax(q @ k.mT * 8**-0.5, -1)
    Z = torch.einsum("hg,bgmn->bhmn", leaves["theta"], P) + leaves["theta_bias"].view(4, 1, 1)
    torch.testing.assert_close(result["running_var"], Z.var((0, 2, 3)))
    torch.testing.assert_close(result["running_mean"], Z.mean((0, 2, 3)))


@pytest.mark.parametrize("backend", FAST)
def test_views_and_copies_give_the_same_result(backend):
    leaves, _, _ = problem(65, 32, 4, torch.float32, fresh=False)
    views = [x.transpose(1, 2) for x in leaves["qkv"].unbind(2)]
    theta = leaves["theta"]
    of_views = reattention(*views, theta, training=True, backend=backend)
    of_copies = reattention(*(x.contiguous() for x in views), theta, training=True, backend=backend)
    torch.testing.assert_close(of_views, of_copies, rtol=1e-5, atol=1e-6)


def test_one_image_with_one_token_has_no_statistics():
    leaves, buffers, grad = problem(1, 8, 2, torch.float32, fresh=False, batch=1)
    with pytest.raises(UserError, match="one image with one token"):
        run("streaming", leaves, buffers, grad, training=True)
    run("streaming", leaves, buffers, grad, training=False)
