"""Every cure of the registry: exported and right, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cures.small_vits import SMALL
from exporting.deployed import stirred

import deepvit
from deepvit import cures
from deepvit.errors import UserError

REFUSED: dict[str, str] = {}
"""Cure → why no program can hold it; none so far."""


@pytest.mark.parametrize("name", cures.CURES)
def test_a_cured_network_is_exported_or_refused(name: str, tmp_path: Path) -> None:
    network = timm.create_model("vit_small_patch16_224", dynamic_img_size=True, **SMALL)
    options: dict[str, Any] = {"blocks": "1"} if cures.CURES[name].removes else {"init": "paper"}
    if cures.CURES[name].needs_options:
        options["options"] = {name: {"neurons": {0: [1, 5]}}}
    cures.apply(network, name, **options)
    stirred(network, (32, 32))
    out = str(tmp_path / "a.pt2")
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            deepvit.export(network, "pt2", out=out)
        return
    made = deepvit.export(network, "pt2", out=out, dynamic_size="on")
    assert {case.shape for case in made.cases} == {
        (1, 3, 32, 32),
        (3, 3, 32, 32),
        (1, 3, 88, 104),
        (3, 3, 88, 104),
    }
    program = torch.export.load(made.path)
    own = [str(node.target) for node in program.graph.nodes if "deepvit" in str(node.target)]
    assert own == []
    tensors = [
        node.meta["val"] for node in program.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    ]
    assert torch.float64 not in {tensor.dtype for tensor in tensors}


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_gated_and_published_reattention_by_onnxruntime(init: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    network = timm.create_model("vit_small_patch16_224", **{**SMALL, "depth": 2})
    cures.apply(network, "reattention", init=init)
    stirred(network, (32, 32))
    made = deepvit.export(network, out=str(tmp_path / "a.onnx"))
    assert max(case.difference for case in made.cases) < 1e-4
