"""Every norm over heads that people put into the layer: against the convolution and that very module on whole maps."""

from __future__ import annotations

import copy

import pytest
import timm
import timm.layers
import torch
import torch.nn.functional as F
from timm.utils import freeze, unfreeze
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from deepvit import capture
from deepvit.cures.reattention import GatedReAttention
from deepvit.errors import UserError
from deepvit.layers import ReAttention
from deepvit.losses.attention_inputs import head_mix

HEADS, WIDTH, TOKENS = 3, 8, 9
BACKENDS = ["reference", "streaming", "native", "auto"]
DROPOUT = 0.4


def plainly(layer, x):
    """The definition as the official code has it, by the layer's own modules, every map in memory."""
    batch, tokens, _ = x.shape
    qkv = layer.qkv(x).view(batch, tokens, 3, layer.num_heads, layer.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    maps = layer.attn_drop((q @ k.mT * layer.scale).softmax(-1))
    y = layer.var_norm(layer.reatten_matrix(maps)) * layer.output_scale @ v
    return layer.proj(y.transpose(1, 2).flatten(2))


def varied(norm):
    """Statistics and gains that are not the fresh ones."""
    draw = torch.Generator().manual_seed(3)
    for name, x in (*norm.named_parameters(), *norm.named_buffers()):
        if x.is_floating_point():
            with torch.no_grad():
                x.copy_(torch.rand(x.shape, generator=draw) * 0.1 + (0.05 if "mean" in name else 0.5))
    return norm


def both(layer, x, calls=2):
    """Outputs, gradients and buffers of the layer and, in float64, of the definition, after some calls."""
    results = []
    for forward, dtype in ((lambda part, z: part(z), x.dtype), (plainly, torch.float64)):
        part, z = copy.deepcopy(layer).to(dtype), x.to(dtype, copy=True).requires_grad_()
        outputs = [forward(part, z * (1 + number)) for number in range(calls)]
        torch.stack(outputs).square().sum().backward()
        # theta's bias: zero by algebra after batch statistics, where what is left is rounding
        grads = {n: p.grad for n, p in part.named_parameters() if n != "reatten_matrix.bias"}
        results.append([*outputs, z.grad, grads, dict(part.named_buffers())])
    return results


def assert_same(found, expected, tolerance=1e-5):
    """Lists and dictionaries of tensors, each to a share of its largest entry."""
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        found, expected = ([group[name] for name in sorted(group)] for group in (found, expected))
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, dict):
            assert_same(a, b, tolerance)
        else:
            assert (a - b).abs().max() <= tolerance * b.abs().max()


NORMS = {
    "batch norm": lambda: nn.BatchNorm2d(HEADS),
    "of torchvision, frozen": lambda: FrozenBatchNorm2d(HEADS, eps=1e-3),
    "of timm, frozen": lambda: timm.layers.convert_sync_batchnorm(
        timm.layers.freeze_batch_norm_2d(nn.BatchNorm2d(HEADS, eps=1e-4))
    ),
    "without statistics": lambda: nn.BatchNorm2d(HEADS, track_running_stats=False),
    "without gain": lambda: nn.BatchNorm2d(HEADS, affine=False),
    "bare": lambda: nn.BatchNorm2d(HEADS, affine=False, track_running_stats=False),
    "cumulative": lambda: nn.BatchNorm2d(HEADS, momentum=None),
    "momentum 0": lambda: nn.BatchNorm2d(HEADS, momentum=0.0),
    "synchronised": lambda: nn.SyncBatchNorm(HEADS),
}


@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen by eval()", "no longer tracked"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
def test_equals_the_module_on_whole_maps(norm, backend, mode):
    layer = ReAttention(HEADS * WIDTH, HEADS, backend=backend)
    layer.var_norm = varied(NORMS[norm]())
    layer.train(mode != "evaluation")
    if mode == "frozen by eval()":
        layer.var_norm.eval()
    if mode == "no longer tracked":
        layer.var_norm.track_running_stats = False
    assert_same(*both(layer, torch.randn(2, TOKENS, HEADS * WIDTH)))


@pytest.mark.parametrize("backend", ["reference", "streaming"])
@pytest.mark.parametrize("frozen", ["module", "eval()"])
def test_dropout_on_maps_goes_on_where_the_norm_is_frozen(frozen, backend):
    """A frozen norm says where the statistics come from, and nothing about dropout: its mean over masks is exact."""
    layer = ReAttention(HEADS * WIDTH, HEADS, backend=backend, attn_drop=DROPOUT).train()
    layer.var_norm = varied(FrozenBatchNorm2d(HEADS) if frozen == "module" else nn.BatchNorm2d(HEADS))
    layer.var_norm.train(frozen == "module")
    x = torch.randn(1, TOKENS, HEADS * WIDTH)
    with torch.no_grad():
        first = layer(x)
        assert not torch.equal(first, layer(x))
        mean = layer(x.expand(4000, -1, -1)).mean(0, keepdim=True)
        exact = plainly(copy.deepcopy(layer).eval(), x)
        assert (mean - exact).abs().max() < 0.05 * (first - exact).abs().max()
        assert torch.equal(layer.eval()(x), layer(x))


@pytest.mark.parametrize("name", ["deepvit_tiny_d16_patch4_32", "deepvit_s_patch16_224"])
def test_timms_freezing_keeps_the_function(name):
    sizes = {"img_size": 32, "depth": 2, "num_classes": 5}
    model = timm.create_model(name, **sizes, reattention_blocks="all").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            varied(module)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    freeze(model)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(x), expected, rtol=1e-5, atol=1e-5)
    freeze_only = [block.attn.var_norm for block in model.blocks]
    assert all(not list(norm.parameters()) for norm in freeze_only)
    unfreeze(model)
    torch.testing.assert_close(model.eval()(x), expected, rtol=1e-5, atol=1e-5)
    model.train()(x).sum().backward()
    assert all(block.attn.var_norm.weight.grad is not None for block in model.blocks)


class Doubling(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(
    ("norm", "name"),
    [
        (nn.GroupNorm(1, HEADS), "GroupNorm"),
        (nn.InstanceNorm2d(HEADS), "InstanceNorm2d"),
        (nn.BatchNorm1d(HEADS), "BatchNorm1d"),
        (nn.Identity(), "Identity"),
        (timm.layers.BatchNormAct2d(HEADS), "BatchNormAct2d"),
        (timm.layers.FrozenBatchNormAct2d(HEADS), "FrozenBatchNormAct2d"),
        (Doubling(HEADS), "Doubling"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_norm_is_refused_by_name(norm, name, training):
    layer = ReAttention(HEADS * WIDTH, HEADS).train(training)
    layer.var_norm = norm.train(training)
    message = rf"var_norm is {name}.*BatchNorm2d, SyncBatchNorm or FrozenBatchNorm2d"
    with pytest.raises(UserError, match=message) as caught:
        layer(torch.randn(2, TOKENS, HEADS * WIDTH))
    assert "\n" not in str(caught.value)


def test_a_norm_in_a_layer_without_one_is_refused():
    layer = ReAttention(HEADS * WIDTH, HEADS, norm="none")
    layer.var_norm = nn.BatchNorm2d(HEADS)
    with pytest.raises(UserError, match=r"var_norm is BatchNorm2d.*norm='none'"):
        layer(torch.randn(2, TOKENS, HEADS * WIDTH))


def test_a_container_for_theta_that_computes_something_else_is_refused():
    layer = ReAttention(HEADS * WIDTH, HEADS)
    layer.reatten_matrix = nn.Sequential(layer.reatten_matrix)
    with pytest.raises(UserError, match=r"reatten_matrix is Sequential.*Conv2d"):
        layer(torch.randn(2, TOKENS, HEADS * WIDTH))


def test_a_parametrised_norm_and_theta_keep_their_place():
    layer = ReAttention(HEADS * WIDTH, HEADS).double()
    nn.utils.parametrizations.weight_norm(layer.reatten_matrix)
    nn.utils.parametrize.register_parametrization(layer.var_norm, "weight", nn.Softplus())
    x = torch.randn(2, TOKENS, HEADS * WIDTH).double()
    torch.testing.assert_close(layer(x), plainly(layer, x))


@pytest.mark.parametrize("norm", ["of torchvision, frozen", "without gain", "batch norm"])
@pytest.mark.parametrize("mode", ["training", "frozen by eval()", "evaluation"])
def test_the_gated_layer_of_the_cure_follows(norm, mode):
    layer = GatedReAttention(HEADS * WIDTH, HEADS).double()
    layer.var_norm = varied(NORMS[norm]()).double()
    with torch.no_grad():
        layer.mix_gate.uniform_(0.5, 1.0)
    layer.train(mode != "evaluation")
    if mode == "frozen by eval()":
        layer.var_norm.eval()
    x = torch.randn(2, TOKENS, HEADS * WIDTH).double()
    q, k, v = layer.qkv(x).view(2, TOKENS, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
    maps = (q @ k.mT * layer.scale).softmax(-1)
    mixed = maps + layer.mix_gate.view(-1, 1, 1) * copy.deepcopy(layer.var_norm)(layer.reatten_matrix(maps))
    torch.testing.assert_close(layer.mix_maps(maps), mixed)
    torch.testing.assert_close(layer(x), layer.proj((mixed @ v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("norm", ["of torchvision, frozen", "without gain", "without statistics"])
@pytest.mark.parametrize("mode", ["training", "frozen by eval()", "evaluation"])
def test_capture_and_the_attention_loss_read_the_same_maps(norm, mode):
    model = timm.create_model("deepvit_tiny_d16_patch4_32", depth=1, img_size=16, attn_drop_rate=0.0)
    attn = model.blocks[0].attn
    attn.var_norm = varied(of_four(norm))
    model.train(mode != "evaluation")
    if mode == "frozen by eval()":
        attn.var_norm.eval()
    x = torch.randn(2, 3, 16, 16)
    inputs = []
    attn.register_forward_pre_hook(lambda module, args, kwargs: inputs.append(args[0]), with_kwargs=True)
    with capture(model, attention=True) as seen, torch.no_grad():
        model(x)
    tokens = inputs[0]
    q, k, _ = attn.qkv(tokens).view(2, 17, 3, 4, 24).permute(2, 0, 3, 1, 4)
    maps = (q @ k.mT * attn.scale).softmax(-1)
    expected = copy.deepcopy(attn.var_norm)(attn.reatten_matrix(maps))
    torch.testing.assert_close(seen.attention["blocks.0"], expected, rtol=1e-4, atol=1e-4)
    assert seen.checks["blocks.0"].passed
    mix = head_mix(attn.reatten_matrix.weight, attn.reatten_matrix.bias, attn.var_norm)
    torch.testing.assert_close(mix(maps), expected)


def of_four(norm):
    """The norm of ``NORMS`` for four heads."""
    options = {
        "of torchvision, frozen": lambda: FrozenBatchNorm2d(4, eps=1e-3),
        "without gain": lambda: nn.BatchNorm2d(4, affine=False),
        "without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    }
    return options[norm]()


def test_plainly_is_what_torch_computes():
    """The definition on the test's side is not ours: one map is taken apart by hand."""
    layer = ReAttention(HEADS * WIDTH, HEADS).double().eval()
    varied(layer.var_norm.double())
    x = torch.randn(1, TOKENS, HEADS * WIDTH).double()
    q, k, v = (
        F.linear(x, w, b) for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
    )
    maps = [
        torch.softmax(q[0, :, part] @ k[0, :, part].T / WIDTH**0.5, -1)
        for part in (slice(h * WIDTH, (h + 1) * WIDTH) for h in range(HEADS))
    ]
    norm, theta = layer.var_norm, layer.reatten_matrix
    heads = []
    for h in range(HEADS):
        mixed = sum(theta.weight[h, g, 0, 0] * maps[g] for g in range(HEADS)) + theta.bias[h]
        scaled = (mixed - norm.running_mean[h]) / (norm.running_var[h] + norm.eps).sqrt()
        heads.append((scaled * norm.weight[h] + norm.bias[h]) @ v[0, :, h * WIDTH : (h + 1) * WIDTH])
    torch.testing.assert_close(plainly(layer, x)[0], layer.proj(torch.cat(heads, -1)))
