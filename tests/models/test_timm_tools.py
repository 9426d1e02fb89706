"""What timm's own tests ask of each of its models, asked of ours: a sample of both stems and of mixed depths.

(Its whole suite passes as well; it is run from its sources, docs/differences.md says how.)
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm import set_scriptable
from timm.models import create_feature_extractor, get_notrace_functions, get_notrace_modules
from torchvision.models import feature_extraction

from deepvit.layers import ReAttention

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*jit:DeprecationWarning")
NAMES = ("deepvit_d16_patch16_224", "deepvit_s_patch16_224")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_scripted(name: str, tiny: dict[str, Any]) -> None:
    with set_scriptable(True):
        model = timm.create_model(name, **tiny, drop_path_rate=0.0)
    scripted = torch.jit.script(copy.deepcopy(model))
    assert isinstance(model.blocks[-1].attn, ReAttention)
    close(scripted.eval()(images()), model.eval()(images()))
    scripted.train()(images()).square().sum().backward()
    model.train()(images()).square().sum().backward()
    for ours, expected in zip(scripted.parameters(), model.parameters(), strict=True):
        assert (ours.grad - expected.grad).abs().max() <= 1e-3 * (1e-2 + expected.grad.abs().max())
    for ours, expected in zip(scripted.buffers(), model.buffers(), strict=True):
        close(ours, expected)


def test_traced_by_fx(name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny)
    graph = feature_extraction.create_feature_extractor(
        copy.deepcopy(model),
        ["head"],
        tracer_kwargs={"leaf_modules": get_notrace_modules(), "autowrap_functions": get_notrace_functions()},
    )
    graph.eval()
    (logits,) = graph(images()).values()
    assert torch.equal(logits, model.eval()(images()))
    graph.train()
    next(iter(graph(images()).values())).square().sum().backward()
    model.train()(images()).square().sum().backward()
    expected = dict(model.named_parameters())
    found = dict(graph.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(p.grad, expected[key].grad) for key, p in found.items())
    assert all(torch.equal(b, model.get_buffer(key)) for key, b in graph.named_buffers())
    scripted = torch.jit.script(graph.eval())
    close(next(iter(scripted(images()).values())), model.eval()(images()))
    close(torch.fx.symbolic_trace(model)(images()), model(images()))


def test_features_by_graph_and_by_blocks(name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny).eval()
    _, by_blocks = model.forward_intermediates(images(), indices=[0, 2], output_fmt="NLC")
    graph = create_feature_extractor(model, {f"blocks.{i}.add_1": str(i) for i in (0, 2)})
    for ours, expected in zip(graph(images()).values(), by_blocks, strict=True):
        assert torch.equal(ours[:, 1:], expected)
    last = model.get_intermediate_layers(images(), n=2, norm=True, return_prefix_tokens=True)
    assert [tuple(part.shape) for pair in last for part in pair] == [(2, 16, 48), (2, 1, 48)] * 2
    assert torch.equal(last[1][0], model.forward_features(images())[:, 1:])


def test_pruned_to_its_first_blocks(name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny).eval()
    _, expected = model.forward_intermediates(images(), indices=[0, 1])
    model.prune_intermediate_layers([0, 1], prune_norm=True, prune_head=True)
    assert len(model.blocks) == 2
    assert all(map(torch.equal, model.forward_intermediates(images(), indices=[0, 1])[1], expected))
    assert model(images()).shape == (2, 17, 48)


@pytest.mark.parametrize("backend", ["reference", "streaming", "native"])
def test_channels_last(backend: str, name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny, backend=backend)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    results = [
        (part(x), part.zero_grad(), part(x).square().sum().backward(), part.eval()(x))
        for part in (model, other)
    ]
    for ours, expected in zip(*results, strict=True):
        if ours is not None:
            close(ours, expected)
    for ours, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert (ours.grad - expected.grad).abs().max() <= 1e-3 * (1e-2 + expected.grad.abs().max())


def test_exported_and_compiled_in_training(name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny)
    program = torch.export.export(copy.deepcopy(model), (images(),), strict=False)
    expected = copy.deepcopy(model)
    close(program.module()(images()), expected(images()))
    compiled = copy.deepcopy(model)
    compiled.set_grad_checkpointing()
    torch.compile(compiled, backend="aot_eager", fullgraph=True)(images()).square().sum().backward()
    expected = copy.deepcopy(model)
    expected(images()).square().sum().backward()
    for ours, theirs in zip(compiled.parameters(), expected.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() <= 1e-3 * (1e-2 + theirs.grad.abs().max())
    for ours, theirs in zip(compiled.buffers(), expected.buffers(), strict=True):
        close(ours, theirs)
