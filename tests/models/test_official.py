"""Official checkpoints: loaded as they are, converted, and recognised by their shapes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deepvit.errors import UserError
from deepvit.models import convert, create, infer_model, load_official, names

GOLDEN = Path(__file__).parents[1] / "golden" / "model_s_style.safetensors"
S_STYLE = {"img_size": 64, "embed_dim": 48, "depth": 4, "num_heads": 4, "reattention_blocks": "last:2"}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden model in the layout of papers.md: raw weights are the averaged ones plus one."""
    held = load_file(GOLDEN)
    state = {key.removeprefix("state."): value for key, value in held.items() if key.startswith("state.")}
    content = {
        "epoch": 299,
        "arch": "deepvit_S",
        "state_dict": {f"module.{key}": value + 1 for key, value in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]},
        "version": 2,
        "args": argparse.Namespace(model="deepvit_S", lr=5e-4),
        "state_dict_ema": {f"module.{key}": value for key, value in state.items()},
        "metric": 82.3,
    }
    path = tmp_path_factory.mktemp("official") / "deepvit.pth.tar"
    torch.save(content, path)
    return path


def test_loaded_directly(official: Path) -> None:
    held = load_file(GOLDEN)
    model = load_official(official, "deepvit_s_patch16_224", **S_STYLE).eval()
    assert model.num_classes == 7
    logits = model(held["x"]).detach()
    assert float((logits - held["logits"]).abs().max() / held["logits"].abs().max()) < 1e-5
    raw = load_official(official, "deepvit_s_patch16_224", "raw", **S_STYLE)
    assert torch.equal(raw.head.bias, model.head.bias + 1)
    larger = load_official(official, "deepvit_s_patch16_224", **{**S_STYLE, "img_size": 96})
    assert larger.pos_embed.shape == (1, 37, 48)


def test_classifier_for_fine_tuning(official: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit deepvit_s_patch16_224: .*num_classes=7 keeps it"):
        load_official(official, "deepvit_s_patch16_224", num_classes=3, **S_STYLE)
    model = load_official(official, "deepvit_s_patch16_224", reset_classifier=True, num_classes=3, **S_STYLE)
    assert model(load_file(GOLDEN)["x"]).shape == (2, 3)
    assert load_official(official, "deepvit_s_patch16_224", num_classes=0, **S_STYLE).num_classes == 0


@pytest.mark.parametrize(("which", "shift"), [("auto", 0), ("ema", 0), ("raw", 1)])
def test_converted_and_loaded_by_timm(which: Any, shift: int, official: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "s.safetensors"
    # The golden model takes 64-pixel images: the size is told from its position table.
    arguments = {key: value for key, value in S_STYLE.items() if key != "img_size"}
    told = convert(official, file, "deepvit_s_patch16_224", which, model_args=arguments)
    assert told["model"] == "deepvit_s_patch16_224"
    assert told["model_args"] == {"num_classes": 7, "img_size": [64, 64], **arguments}
    assert told["weights"] == ("raw" if which == "raw" else "ema")
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    model = timm.create_model("deepvit_s_patch16_224", **told["model_args"], checkpoint_path=file)
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert told["tensors"] == len(model.state_dict())
    held = load_file(GOLDEN)
    assert torch.equal(model.head.weight, held["state.head.weight"] + shift)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["model"] == "deepvit_s_patch16_224"
    assert json.loads(metadata["model_args"]) == told["model_args"]


def refused(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        convert(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_is_overwritten_or_left_half_written(official: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    assert "4 blocks, 2 of them with Re-attention, width 48, conv stem" in refused(official, file)
    assert "does not fit deepvit_l_patch16_224" in refused(official, file, "deepvit_l_patch16_224")
    assert "must end in .safetensors" in refused(official, tmp_path / "s.pth")
    bad = tmp_path / "bad.pth"
    bad.write_bytes(official.read_bytes()[:1000])
    assert "damaged, cut short" in refused(bad, file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.pth"]
    file.write_text("precious")
    assert "overwrite=True" in refused(official, file, "deepvit_s_patch16_224", model_args=S_STYLE)
    assert file.read_text() == "precious"
    convert(official, file, "deepvit_s_patch16_224", overwrite=True, model_args=S_STYLE)
    assert len(load_file(file)) > 10
    assert "is the source itself" in refused(
        file, file, "deepvit_s_patch16_224", overwrite=True, model_args=S_STYLE
    )
    (tmp_path / "folder.safetensors").mkdir()
    assert "is a folder" in refused(official, tmp_path / "folder.safetensors")


@pytest.mark.parametrize("name", names())
def test_published_models_are_recognised_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        model = create(name, num_classes=12)
    assert infer_model(model.state_dict()) == name


def test_a_wrong_name_is_told_the_right_one(tmp_path: Path) -> None:
    model = create("deepvit_tiny_d16_patch4_32", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(
        UserError, match=r"does not fit .*; the weights have the shapes of deepvit_tiny_d16_patch4_32"
    ):
        load_official(tmp_path / "tiny.pth", "deepvit_d16_patch16_224")
    told = convert(tmp_path / "tiny.pth", tmp_path / "tiny.safetensors")
    assert (told["model"], told["model_args"]) == ("deepvit_tiny_d16_patch4_32", {"num_classes": 3})


def test_shapes_of_no_published_model() -> None:
    with torch.device("meta"):
        assert infer_model(create("deepvit_s_patch16_224", reattention_blocks="last:4").state_dict()) is None
        assert infer_model(create("vit_small_patch16_224").state_dict()) is None


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    model = create(
        "deepvit_d16_patch16_224", img_size=32, patch_size=16, embed_dim=24, depth=1, num_classes=24
    )
    state = model.state_dict()
    state["head.weight"] = state["blocks.0.attn.proj.weight"]
    torch.save(state, tmp_path / "shared.pth")
    convert(
        tmp_path / "shared.pth",
        tmp_path / "shared.safetensors",
        "deepvit_d16_patch16_224",
        model_args={"img_size": 32, "embed_dim": 24, "depth": 1},
    )
    written = load_file(tmp_path / "shared.safetensors")
    assert torch.equal(written["head.weight"], written["blocks.0.attn.proj.weight"])
