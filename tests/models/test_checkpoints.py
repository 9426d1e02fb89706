"""Layouts of weights, and one line for each way in which they do not fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepvit.errors import UserError
from deepvit.models import create, load_state, load_weights

RAW = {"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)}
EMA = {key: 2 * value for key, value in RAW.items()}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("raw", "ema"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model."])
def test_raw_and_averaged_weights(raw: str, ema: str, prefix: str, tmp_path: Path) -> None:
    content = {
        raw: prefixed(RAW, prefix),
        ema: prefixed(EMA, prefix),
        "args": argparse.Namespace(),
        "epoch": 1,
    }
    file = saved(tmp_path / "both.pth.tar", content)
    assert same(load_state(file), EMA)
    assert same(load_state(file, "ema"), EMA)
    assert same(load_state(file, "raw"), RAW)


def test_one_kind_of_weights_only(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain.pth", RAW)
    assert same(load_state(plain), RAW)
    assert same(load_state(plain, "raw"), RAW)
    with pytest.raises(UserError, match=r"holds no averaged \(EMA\) weights; ask for which='raw'"):
        load_state(plain, "ema")
    averaged = saved(tmp_path / "ema.pth", {"state_dict_ema": EMA, "state_dict": None})
    assert same(load_state(averaged), EMA)
    with pytest.raises(UserError, match=r"holds averaged \(EMA\) weights only"):
        load_state(averaged, "raw")
    with pytest.raises(UserError, match="which='both' is unknown: use auto, ema"):
        load_state(plain, "both")  # type: ignore[arg-type]


def test_averages_of_torchs_own_class(tmp_path: Path) -> None:
    model = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    assert load_state(saved(tmp_path / "swa.pth", model.state_dict())).keys() == {"weight", "bias"}


def test_a_prefix_that_not_all_share_is_a_name(tmp_path: Path) -> None:
    state = {"model.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert same(load_state(saved(tmp_path / "a.pth", state)), state)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not weights"),
        ({"state_dict": {}}, "holds no weights"),
        ({"state_dict": {"a": 3}}, "entry 'a' is of type int, not a tensor"),
        ({"epoch": 3, "lr": 0.1}, "entry 'epoch' is of type int"),
        ({"state_dict": {7: torch.ones(1)}}, "entry '7' is of type Tensor"),
    ],
)
def test_files_without_weights(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_state(saved(tmp_path / "odd.pth", content))
    assert words in str(caught.value)


def misfit(model: torch.nn.Module, state: dict[str, Tensor], **options: Any) -> str:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, state, source="w.pth", name="the model", **options)
    assert same(dict(model.state_dict()), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_misfits_name_weights_and_shapes_and_change_nothing(tiny: dict[str, Any]) -> None:
    model = create("deepvit_d16_patch16_224", **tiny)
    wide = create("deepvit_d16_patch16_224", **{**tiny, "embed_dim": 96})
    text = misfit(model, wide.state_dict())
    assert text.startswith("w.pth does not fit the model: weights ")
    assert "cls_token is [1, 1, 96], the model has [1, 1, 48]" in text
    assert "pos_embed is [1, 17, 96], the model has [1, 17, 48]" in text
    assert len(text) < 500
    shallow = create("deepvit_d16_patch16_224", **{**tiny, "depth": 2})
    assert "19 missing (blocks.2.norm1.weight, blocks.2.norm1.bias, " in misfit(model, shallow.state_dict())
    assert ", and 16 more)" in misfit(model, shallow.state_dict())
    plain = create("deepvit_d16_patch16_224", **tiny, reattention_blocks="none")
    text = misfit(plain, model.state_dict())
    assert "21 not in the model (blocks.0.attn.reatten_matrix.weight, " in text
    odd = {**model.state_dict(), "pos_embed": torch.zeros(1, 15, 48)}
    assert "pos_embed is [1, 15, 48], the model has [1, 17, 48]" in misfit(model, odd)


def test_another_classifier_is_kept_or_reset_by_choice(tiny: dict[str, Any]) -> None:
    torch.manual_seed(0)
    source = create("deepvit_d16_patch16_224", **{**tiny, "num_classes": 9})
    model = create("deepvit_d16_patch16_224", **tiny)
    text = misfit(model, source.state_dict())
    assert "head.weight is [9, 48], the model has [5, 48]" in text
    assert "num_classes=9 keeps it, reset_classifier=True starts a new one" in text
    fresh = model.head.weight.clone()
    load_weights(model, source.state_dict(), reset_classifier=True)
    assert torch.equal(model.head.weight, fresh)
    assert torch.equal(model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    headless = create("deepvit_d16_patch16_224", **{**tiny, "num_classes": 0})
    load_weights(headless, source.state_dict())
    assert torch.equal(headless.norm.weight, source.norm.weight)
    # Only the classifier may differ then: the rest is still held to fit.
    assert "missing" in misfit(model, {"head.weight": torch.ones(5, 48)}, reset_classifier=True)


def test_any_timm_model_from_a_file(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=3)
    file = tmp_path / "resnet.safetensors"
    save_file(source.state_dict(), file)
    model = create("resnet10t", num_classes=3, checkpoint_path=file)
    assert same(dict(model.state_dict()), dict(source.state_dict()))
    with pytest.raises(
        UserError, match=r"resnet.safetensors does not fit resnet10t: .*num_classes=3 keeps it"
    ):
        create("resnet10t", num_classes=4, checkpoint_path=file)
    assert create("resnet10t", num_classes=0, checkpoint_path=file).num_classes == 0


def test_patch_size_and_table_are_resized_as_timm_does(tiny: dict[str, Any]) -> None:
    source = create("deepvit_d16_patch16_224", **tiny)
    model = create("deepvit_d16_patch16_224", **{**tiny, "patch_size": 4})
    load_weights(model, source.state_dict())
    assert model.pos_embed.shape == (1, 65, 48)
    assert torch.equal(model.pos_embed[:, 0], source.pos_embed[:, 0])


def test_a_backbone_takes_its_part_of_the_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    source = create("deepvit_d16_patch16_224", **tiny)
    file = tmp_path / "whole.safetensors"
    save_file(source.state_dict(), file)
    shape = {key: value for key, value in tiny.items() if key != "num_classes"} | {"features_only": True}
    backbone = create("deepvit_d16_patch16_224", **shape, out_indices=(0, 1), checkpoint_path=file).eval()
    x = torch.randn(1, 3, 32, 32)
    expected = source.eval().forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(backbone(x), expected, strict=True))
    with pytest.raises(UserError, match="cls_token is"):
        create(
            "deepvit_d16_patch16_224", **{**shape, "embed_dim": 24}, out_indices=(0, 1), checkpoint_path=file
        )
