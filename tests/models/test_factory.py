"""Slips in a model's name or arguments: one line each, with the nearest that would do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepvit.errors import UserError
from deepvit.models import create, names, nearest, table

VIT = "vit_tiny_patch16_224"


def slip(name: str, **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        create(name, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_any_timm_model() -> None:
    assert type(create(VIT, depth=1, img_size=[32, 48], num_classes=3)).__name__ == "VisionTransformer"
    assert type(create("convnext_atto", depths=[1, 1, 1, 1], drop_path_rate=0)).__name__ == "ConvNeXt"
    assert create(VIT, depth=2, num_classes=None).num_classes == 1000
    assert (
        create(VIT, depth=3, features_only=True, out_indices=[2])(torch.zeros(1, 3, 224, 224))[0].shape[1]
        == 192
    )


def test_unknown_names_offer_the_nearest() -> None:
    assert "did you mean deepvit_s_patch16_224 or" in slip("deepvit_small_patch16_224")
    assert "did you mean vit_tiny_patch16_224 or" in slip("vit_tinny_patch16_224")
    assert "`deepvit list models` shows what there is" in slip("qqqqqqqq")
    assert "has no pretrained weights 'foo': it has augreg_in21k" in slip(f"{VIT}.foo")
    assert slip("") == "unknown model '': `deepvit list models` shows what there is"
    assert nearest("deepvit_x", names()) != []


def test_unknown_arguments_offer_the_nearest() -> None:
    assert slip(VIT, imgsize=32).endswith(
        "has no argument 'imgsize': did you mean img_size or dynamic_img_size?"
    )
    assert "did you mean depth?" in slip("deepvit_s_patch16_224", dept=3)
    assert "did you mean reattention_blocks or" in slip("deepvit_s_patch16_224", reattention_block="none")
    assert "only the deepvit_* models have it" in slip(VIT, reattention_blocks="all")
    assert "nearest are" in slip(VIT, qqq=1)
    assert len(slip("resnet18", depth=3)) < 200


@pytest.mark.parametrize("name", [VIT, "deepvit_d16_patch16_224"])
@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("depth", "four", "depth='four' must be a whole number, not str"),
        ("depth", 2.5, "depth=2.5 must be a whole number, not float"),
        ("depth", 0, "depth=0 must be at least 1"),
        ("num_classes", "10", "num_classes='10' must be a whole number"),
        ("num_classes", -1, "num_classes=-1 must be at least 0"),
        ("drop_path_rate", "0.1", "drop_path_rate='0.1' must be a number, not str"),
        ("drop_path_rate", 1.5, "drop_path_rate=1.5 must be at least 0 and below 1"),
        ("class_token", "no", "class_token='no' must be true or false, not str"),
        ("img_size", 30, "patch_size=16 does not divide img_size=30: use img_size=16 or 32"),
        ("embed_dim", 100, "embed_dim=100 is not divisible by num_heads="),
        ("num_heads", 7, "is not divisible by num_heads=7: use embed_dim="),
        ("global_pool", "mean", "global_pool='mean'"),
        ("qkv_bias", "yes", "qkv_bias='yes' must be true or false"),
    ],
)
def test_values_that_cannot_be_meant(name: str, argument: str, value: Any, words: str) -> None:
    assert words in slip(name, **{"depth": 1, argument: value})


def test_nearest_widths_and_heads_work() -> None:
    text = slip(VIT, depth=1, embed_dim=100)
    assert text.endswith("use embed_dim=99 or 102, or num_heads=2 or 4")
    for arguments in ({"embed_dim": 99}, {"embed_dim": 102}, {"embed_dim": 100, "num_heads": 4}):
        create(VIT, depth=1, **arguments)


def test_lists_of_another_model() -> None:
    assert "depths=2 must be a list of numbers, not int" in slip("convnext_atto", depths=2)
    # Declared as a whole number by timm, yet a pair is fine.
    create("swin_tiny_patch4_window7_224", window_size=(7, 7), depths=[1, 1, 1, 1], embed_dim=24)


def test_reasons_that_are_timms_own() -> None:
    text = slip(VIT, class_token=False)  # older timm asserts without a word: then the condition is shown
    assert (
        "cannot be built with class_token=False (Token pooling needs" in text or "(assert class_token" in text
    )
    text = slip("deepvit_s_patch16_224", pretrained=True, depth=1)
    assert "its pretrained weights cannot be had (No pretrained weights exist" in text
    assert "No such file" in slip(VIT, depth=1, checkpoint_path="/nowhere/weights.pth")
    assert "unknown model 'timm/vit_tiny'" in slip("timm/vit_tiny")


def test_table_has_a_row_for_each_model() -> None:
    rows = {row["model"]: row for row in table()}
    assert list(rows) == names()
    row = rows["deepvit_s_patch16_224"]
    assert (row["blocks"], row["width"], row["heads"], row["parameters"]) == ("16", "396", "12", "27.313 M")
