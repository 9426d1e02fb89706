"""The layer scripted, traced and taken apart by torch.fx computes what it computes eagerly."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.fx
from timm.layers import get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from deepvit.cures.reattention import GatedReAttention
from deepvit.errors import UserError
from deepvit.layers import ReAttention
from tests.layers.test_map_norm import HEADS, NORMS, TOKENS, WIDTH, assert_same, plainly, varied

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*jit:DeprecationWarning")
SCRIPTABLE = sorted(set(NORMS) - {"synchronised"})


def extracted(layer):
    """As timm takes features: the layer is one node of a graph."""
    return create_feature_extractor(
        nn.Sequential(layer), {"0": "y"}, tracer_kwargs={"leaf_modules": get_notrace_modules()}
    )


WAYS = {
    "script": torch.jit.script,
    "fx": torch.fx.symbolic_trace,
    "features": extracted,
    "features, then script": lambda layer: torch.jit.script(extracted(layer)),
}


def twice(layer, x):
    """Outputs, gradients and buffers after two calls."""
    x = x.clone().requires_grad_()
    outputs = [layer(x * (1 + number)) for number in range(2)]
    outputs = [y["y"] if isinstance(y, dict) else y for y in outputs]
    torch.stack(outputs).square().sum().backward()
    names = {name.removeprefix("0."): p.grad for name, p in layer.named_parameters()}
    assert names.pop("reatten_matrix.bias") is not None  # zero by algebra after batch statistics
    buffers = {name.removeprefix("0."): x for name, x in layer.named_buffers()}
    return [*outputs, x.grad, names, buffers]


@pytest.mark.parametrize("mode", ["training", "evaluation", "frozen by eval()", "no longer tracked"])
@pytest.mark.parametrize("norm", [*SCRIPTABLE, "none"])
@pytest.mark.parametrize("way", WAYS)
def test_equals_the_eager_layer(way, norm, mode):
    options = {"scale_norm": True, "gated": True, "rescale": True, "norm_layer": nn.LayerNorm}
    layer = ReAttention(HEADS * WIDTH, HEADS, norm="none" if norm == "none" else "batch", **options)
    if norm != "none":
        layer.var_norm = varied(NORMS[norm]())
    layer.train(mode != "evaluation")
    if mode == "frozen by eval()":
        layer.var_norm.eval()
    if mode == "no longer tracked":
        layer.var_norm.track_running_stats = False
    other = WAYS[way](copy.deepcopy(layer))
    if way.startswith("features"):  # torchvision gives one mode to all modules
        other.train(layer.training)
        dict(other.named_modules())["0.var_norm"].train(layer.var_norm.training)
    x = torch.randn(2, TOKENS, HEADS * WIDTH)
    *found, buffers = twice(other, x)
    *expected, all_buffers = twice(layer, x)
    assert_same(found, expected)
    assert mode != "training" or way == "fx" or buffers.keys() == all_buffers.keys()
    assert_same(buffers, {name: all_buffers[name] for name in buffers})  # a graph keeps those that it uses


def test_a_scripted_layer_is_saved_loaded_and_switched_between_its_modes():
    layer = ReAttention(HEADS * WIDTH, HEADS, attn_drop=0.5, norm="none")
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    other, x = torch.jit.load(file), torch.randn(2, TOKENS, HEADS * WIDTH)
    assert not torch.equal(other(x), other(x))
    torch.testing.assert_close(other.eval()(x), layer.eval()(x))
    with pytest.raises(torch.jit.Error, match="takes no attention mask"):
        other(x, torch.zeros(TOKENS, TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_scripted_in_other_precisions(dtype):
    """Nearly uniform maps, whose variance bfloat16 has no digits for."""
    layer = ReAttention(HEADS * WIDTH, HEADS).to(dtype)
    x = (0.1 * torch.randn(2, TOKENS, HEADS * WIDTH)).to(dtype)
    for training in (True, False):
        other = torch.jit.script(copy.deepcopy(layer).train(training))
        found, expected = other(x), copy.deepcopy(layer).train(training)(x)
        assert found.dtype == dtype
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-9
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_scripted_layer_keeps_the_digits_of_nearly_uniform_maps():
    layer = ReAttention(96, 4)
    with torch.no_grad():
        layer.qkv.weight.mul_(0.1)
    x = torch.randn(2, 197, 96)
    exact = copy.deepcopy(layer).double()(x.double())
    ours, official = torch.jit.script(copy.deepcopy(layer))(x), plainly(layer, x)
    assert (ours - exact).abs().max() < 0.1 * (official - exact).abs().max()


@pytest.mark.parametrize("norm", ["batch", "frozen", "none"])
def test_traced(norm):
    layer = ReAttention(HEADS * WIDTH, HEADS, norm="none" if norm == "none" else "batch").eval()
    if norm == "frozen":
        layer.var_norm = varied(FrozenBatchNorm2d(HEADS))
    traced = torch.jit.trace(layer, torch.randn(1, TOKENS, HEADS * WIDTH))
    x = torch.randn(3, TOKENS, HEADS * WIDTH)
    torch.testing.assert_close(traced(x), layer(x))


def test_fx_counts_batches_when_the_graph_runs():
    layer = ReAttention(HEADS * WIDTH, HEADS)
    layer.var_norm.momentum = None
    graph = torch.fx.symbolic_trace(layer)
    assert layer.var_norm.num_batches_tracked == 0
    x = torch.randn(2, TOKENS, HEADS * WIDTH)
    graph(x)
    graph(2 * x)
    assert layer.var_norm.num_batches_tracked == 2
    with pytest.raises(UserError, match="attn_mask"):
        graph(x, torch.zeros(TOKENS, TOKENS))


def test_feature_extraction_takes_the_layer_as_one_node():
    layer = ReAttention(HEADS * WIDTH, HEADS).eval()
    assert [node.op for node in extracted(layer).graph.nodes] == ["placeholder", "call_module", "output"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"var_norm": nn.GroupNorm(1, HEADS)}, "var_norm is GroupNorm"),
        ({"var_norm": nn.SyncBatchNorm(HEADS)}, "no SyncBatchNorm; script the model before"),
        ({"reatten_matrix": nn.Identity()}, "reatten_matrix is Identity"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_scripted_is_refused_by_name(change, message):
    layer = ReAttention(HEADS * WIDTH, HEADS)
    for name, module in change.items():
        setattr(layer, name, module)
    for part in (layer, nn.Sequential(layer)):
        with pytest.raises(UserError, match=message):
            torch.jit.script(part)


def test_a_layer_with_another_forward_is_refused_by_name():
    with pytest.raises(UserError, match=r"GatedReAttention cannot be scripted; torch.export"):
        torch.jit.script(nn.Sequential(GatedReAttention(HEADS * WIDTH, HEADS)))
