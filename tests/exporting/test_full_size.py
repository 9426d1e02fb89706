"""Networks of full size: onnxruntime and torch agree at two batch sizes, and at two sizes of images where these vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from exporting.deployed import SCENE, stirred
from torch import nn

import deepvit
from deepvit import cures
from deepvit.data import InputSpec
from deepvit.tasks import Segmentation


def cured() -> nn.Module:
    network = timm.create_model("vit_small_patch16_224", dynamic_img_size=True)
    return cures.apply(network, "reattention@last:6+attnscale@first:6+layerscale", init="paper")


def segmenter() -> nn.Module:
    problem = Segmentation({**SCENE, "channels": 64, "aux": False})
    sizes = {"dynamic_img_size": True, "dynamic_img_pad": True}
    backbone = timm.create_model("vit_small_patch16_224", num_classes=0, **sizes)
    return problem.deployed(problem.network(backbone, InputSpec(224)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "step"),
    [
        (lambda: timm.create_model("deepvit_s_patch16_224"), None),
        (lambda: timm.create_model("deepvit_d16_patch16_224", dynamic_img_size=True), 16),
        (cured, 16),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), None),
        (segmenter, 1),
    ],
    ids=["deepvit_s", "deepvit_d16", "cured vit_small", "swin_tiny", "segmenter"],
)
def test_full_size(build: Callable[[], nn.Module], step: int | None, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("segmentation_models_pytorch")
    network = stirred(build(), (224, 224))
    made = deepvit.export(network, out=str(tmp_path / "a.onnx"))
    assert made.step == step
    assert {case.shape[0] for case in made.cases} == {1, 3}
    assert len({case.shape[2:] for case in made.cases}) == (1 if step is None else 2)
    assert max(case.difference / max(case.largest, 1.0) for case in made.cases) < 1e-4
