"""Exported files: what is in them, that they are checked, and that nothing is left of those that fail."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from exporting.deployed import CLASSES, SCENE, run_folder
from torch import nn

import deepvit
from deepvit.errors import UserError
from deepvit.exporting import formats
from deepvit.exporting.plain import plain, pooled
from deepvit.exporting.sizes import another, other_sizes
from deepvit.ops import reference

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}


def test_a_deepvit_run_is_exported_with_any_batch_and_size(tmp_path: Path) -> None:
    run = run_folder(
        tmp_path / "run", "deepvit_tiny_d16_patch4_32", 32, depth=2, embed_dim=48, dynamic_img_size=True
    )
    made = deepvit.export(str(run))
    assert made.path == run / "exported" / "model.onnx"
    assert {case.shape for case in made.cases} == {
        (1, 3, 32, 32),
        (3, 3, 32, 32),
        (1, 3, 44, 52),
        (3, 3, 44, 52),
    }
    assert max(case.difference for case in made.cases) < 1e-4
    graph = onnx.load(made.path)
    assert {node.domain for node in graph.graph.node} <= {""}
    floating = {onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    assert not {tensor.data_type for tensor in graph.graph.initializer} & floating
    assert not [v for v in graph.graph.value_info if v.type.tensor_type.elem_type in floating]
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    # Sizes and batches that the check did not try, by a session of our own.
    network, _ = deepvit.load_deployed(run)
    session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
    for shape in ((5, 3, 24, 40), (2, 3, 64, 36)):
        images = torch.randn(shape)
        (got,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(got, network(images).detach().numpy(), atol=1e-4)
    told = json.loads(made.description.read_text())
    assert told["input"]["shape"] == ["batch", 3, "height", "width"]
    assert told["input"]["multiple"] == 4
    assert told["output"]["shape"] == ["batch", 5]
    assert told["classes"] == CLASSES
    assert told["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert told["file"]["sha256"] == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert told["file"]["opset"]["ai.onnx"] >= 18
    # The run is a run as before, and evaluation of it goes on; a second export replaces the first.
    assert json.loads((run / "model.json").read_text())["format"].startswith("deepvit-model")
    deepvit.export(str(run), dynamic_size="off")
    assert json.loads(made.description.read_text())["input"]["shape"] == ["batch", 3, 32, 32]


def test_a_program_needs_no_deepvit(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, "reattention", **VIT)
    made = deepvit.export(str(run), "pt2", out=str(tmp_path / "own" / "leaf.pt2"))
    assert made.step is None
    assert "32" in made.fixed
    assert (made.path, made.description) == (tmp_path / "own" / "leaf.pt2", tmp_path / "own" / "leaf.json")
    images = torch.randn(4, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "answer = torch.export.load(sys.argv[1]).module()(torch.load(sys.argv[2]))\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in ('deepvit', 'timm')]\n"
        "torch.save(answer.detach(), sys.argv[3])"
    )
    subprocess.run(
        [sys.executable, "-c", code, made.path, tmp_path / "images.pt", tmp_path / "answer.pt"],
        check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    network, _ = deepvit.load_deployed(run)
    torch.testing.assert_close(torch.load(tmp_path / "answer.pt"), network(images), atol=1e-4, rtol=0)


def test_maps_are_mixed_as_the_definition_says() -> None:
    """The folded layer against the definition in float64, with a norm that amplifies as a trained one does."""
    layer = deepvit.ReAttention(24, 4, rescale=True).double().eval()
    with torch.no_grad():
        layer.var_norm.running_mean.normal_(0.05, 0.01)
        layer.var_norm.running_var.uniform_(1e-6, 1e-4)
        layer.var_norm.weight.normal_()
        layer.var_norm.bias.normal_()
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    q, k, v = layer.qkv(x).view(2, 9, 3, 4, 6).permute(2, 0, 3, 1, 4)
    norm = layer.var_norm
    _, maps = reference.reattention_maps(
        q, k, layer.reatten_matrix.weight.view(4, 4), theta_bias=layer.reatten_matrix.bias, scale=6**-0.5,
        norm_weight=norm.weight, norm_bias=norm.bias, running_mean=norm.running_mean, running_var=norm.running_var,
        eps=norm.eps, output_scale=6**-0.5,
    )  # fmt: skip
    wanted = layer.proj((maps @ v).transpose(1, 2).reshape(2, 9, 24))
    torch.testing.assert_close(plain(layer)(x), wanted, atol=1e-9, rtol=0)


def test_the_network_itself_stays_as_it_is() -> None:
    network = timm.create_model("deepvit_tiny_d16_patch4_32", depth=1, num_classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    plain(network)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert list(network.state_dict()) == list(before)
    assert type(network.blocks[0].attn.var_norm) is nn.BatchNorm2d


@pytest.mark.parametrize("size", [(5, 7), (6, 6), (1, 3), (13, 2)])
def test_pooling_by_products_is_pooling(size: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *size, dtype=torch.float64)
    for parts in ((1, 2), (2, 2), (3, 3), (6, 6)):
        torch.testing.assert_close(pooled(maps, parts), F.adaptive_avg_pool2d(maps, parts))


def test_which_sizes_a_network_takes() -> None:
    vit = {"pretrained": False, **VIT}
    assert other_sizes(timm.create_model("vit_small_patch16_224", **vit), (32, 32))[0] is None
    assert (
        other_sizes(timm.create_model("vit_small_patch16_224", dynamic_img_size=True, **vit), (32, 32))[0]
        == 8
    )
    padding = timm.create_model("vit_small_patch16_224", dynamic_img_size=True, dynamic_img_pad=True, **vit)
    assert other_sizes(padding, (32, 32))[0] == 1
    height, width = another((224, 224), 16)
    assert (height % 16, width % 16, height % 32, width % 32) == (0, 0, 16, 16)


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = timm.create_model("vit_small_patch16_224", num_classes=3, **VIT)
    good = formats.FORMATS["pt2"]

    def off_by_little(path: Path) -> formats.Answer:
        answer = good.open(path)
        return lambda images: answer(images) + 3e-4 * (images.shape[0] == 3)

    wrong = formats.Format(good.suffix, good.runtime, good.write, off_by_little, good.versions)
    monkeypatch.setitem(formats.FORMATS, "pt2", wrong)
    with pytest.raises(UserError, match=r"noise of 3×3×32×32: .* differ by 0\.0003 .* more than 0\.0001"):
        deepvit.export(network, "pt2", out=str(tmp_path / "a.pt2"))
    assert list(tmp_path.iterdir()) == []


class ByValue(nn.Module):
    """Decides by the values of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images).mean((2, 3)) if images.sum() > 0 else images.mean((1, 2, 3))[:, None]


class Several(ByValue):
    """Gives two things."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, self.layer(images)


class OwnForward(deepvit.ReAttention):
    """A layer of somebody's own, which computes by the operator."""

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return 2 * self._by_operator(x)


def test_what_cannot_be_exported_says_why(tmp_path: Path) -> None:
    vit = timm.create_model("vit_small_patch16_224", num_classes=3, **VIT)
    own = timm.create_model("deepvit_tiny_d16_patch4_32", depth=1, num_classes=3)
    own.blocks[0].attn.__class__ = OwnForward
    batch = timm.create_model("deepvit_tiny_d16_patch4_32", depth=1, num_classes=3)
    norm = batch.blocks[0].attn.var_norm
    norm.running_mean = norm.running_var = None
    for network, options, told in (
        (ByValue(), {}, "torch.export cannot follow it"),
        (Several(), {}, "it gives tuple and no single tensor|cannot follow"),
        (own, {}, "an operator that only this package has"),
        (batch, {}, "blocks.0.attn: its norm keeps no running statistics"),
        (vit, {"dynamic_size": "on"}, "it takes images of 32×32 pixels only .*leave out --dynamic_size on"),
        (vit, {"out": str(tmp_path / "a.onnx")}, "does not end in .pt2"),
        (vit, {"arch": "vit_small_patch16_224"}, "arch goes with the name of a model"),
        ("vit_nonsense", {}, "unknown model"),
        (vit, {"format": "tflite"}, "choose onnx or pt2"),
    ):
        given = {"format": "pt2", "out": str(tmp_path / "a.pt2"), **options}
        with pytest.raises(UserError, match=told):
            deepvit.export(network, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_description_of_something_else_stays(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "vit_small_patch16_224", 32, **VIT)
    before = (run / "model.json").read_bytes()
    with pytest.raises(
        UserError, match=r"model.json is not the description of an export, and is not overwritten"
    ):
        deepvit.export(str(run), "pt2", out=str(run / "model.pt2"))
    assert (run / "model.json").read_bytes() == before
    assert not (run / "model.pt2").exists()


def test_onnx_without_its_packages_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    network = timm.create_model("vit_small_patch16_224", num_classes=3, **VIT)
    with pytest.raises(UserError, match=r"pip install 'deepvit\[export\]' \(--format pt2 does not\)"):
        deepvit.export(network, out=str(tmp_path / "a.onnx"))


@pytest.mark.parametrize(
    ("arch", "size", "args", "step"),
    [
        ("vit_small_patch16_224", 32, {**VIT, "dynamic_img_size": True, "dynamic_img_pad": True}, 1),
        pytest.param(
            "swin_tiny_patch4_window7_224", 48, {"img_size": 48, "window_size": 3, "embed_dim": 24}, None,
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_segmenters_are_programs(
    arch: str, size: int, args: dict[str, object], step: int | None, tmp_path: Path
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    run = run_folder(tmp_path / "run", arch, size, facts=SCENE, **args)
    made = deepvit.export(str(run), "pt2")
    assert made.step == step
    told = json.loads(made.description.read_text())
    sides = [size, size] if step is None else ["height", "width"]
    assert told["output"]["shape"] == ["batch", 3, *sides]
    assert not [name for name in torch.export.load(made.path).state_dict if ".aux." in name]
