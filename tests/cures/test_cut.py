"""Cut: the network without blocks, against timm's own network of the blocks that stay."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import deepvit.models  # noqa: F401 - registers the DeepViT models
from deepvit import cures
from deepvit.data import InputSpec
from deepvit.errors import UserError
from deepvit.runs import cost, cut_run, load_deployed
from deepvit.runs.card import ModelCard, save_deployed

ARGS = {"img_size": 32, "depth": 6, "num_classes": 4}
NAMES = {
    "vit_tiny_patch16_224": {},
    "deepvit_s_patch16_224": {"reattention_blocks": "last:3"},
    "cait_xxs24_224": {},
}


def made(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    size = {"img_size": 64} if name.startswith("cait") else {}
    model = timm.create_model(name, **{**ARGS, **NAMES.get(name, {}), **size, **options}).eval()
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=(1.0 / p[0].numel()) ** 0.5)
    return model


def images_for(model, count=2):
    side = 64 if "Cait" in type(model).__name__ else 32
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_is_the_network_of_the_other_blocks(name):
    whole, cut = made(name), made(name)
    images = images_for(whole)
    for number in (1, 4):
        whole.blocks[number].forward = lambda x, **_: x
    assert cures.apply(cut, "cut@1") is cut
    cures.apply(cut, "cut", blocks=[3])  # what was block 4
    torch.testing.assert_close(cut(images), whole(images), rtol=1e-5, atol=1e-6)
    assert len(cut.blocks) == 4
    assert [key for key in cut.state_dict() if key.startswith("blocks.4.")] == []
    assert type(cut.blocks) is type(made(name).blocks)
    assert [entry["name"] for entry in cut.deepvit_cures] == ["cut", "cut"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_record_rebuilds_it_and_weights_fit(name):
    cut = cures.apply(made(name), "cut@2")
    record = json.loads(json.dumps(cut.deepvit_cures))
    again = cures.reapply(made(name), record)
    again.load_state_dict(cut.state_dict())
    images = images_for(cut)
    assert torch.equal(again(images), cut(images))


@torch.no_grad()
def test_what_counts_blocks_is_right_afterwards():
    cut = cures.apply(made(), "cut", blocks="1,3")
    shorter = made(depth=4)
    assert cut.feature_info == shorter.feature_info
    images = images_for(cut)
    last, features = cut.forward_intermediates(images, indices=[0, 3])
    assert len(features) == 2
    shorter.load_state_dict(cut.state_dict())
    same, theirs = shorter.forward_intermediates(images, indices=[0, 3])
    assert torch.equal(last, same)
    assert all(torch.equal(a, b) for a, b in zip(features, theirs, strict=True))
    ours = cures.apply(made("deepvit_s_patch16_224"), "cut@4")
    assert ours.reattention_blocks == (3, 4)  # of 3, 4, 5
    assert len(ours.feature_info) == 5


@torch.no_grad()
def test_with_other_cures_all_numbers_are_those_of_the_uncut_network():
    both = cures.apply(made(), "cut@1,layerscale@2-3", options={"layerscale": {"value": 0.5}})
    assert [entry["name"] for entry in both.deepvit_cures] == ["layerscale", "cut"]
    scaled = [not isinstance(block.ls1, torch.nn.Identity) for block in both.blocks]
    assert scaled == [False, True, True, False, False]  # 2 and 3 of before
    with pytest.raises(UserError, match="the model has layerscale already in block 1"):
        cures.apply(both, "layerscale@1")
    cures.apply(both, "layerscale@3")  # the numbers that they have now
    again = cures.reapply(made(), both.deepvit_cures)
    again.load_state_dict(both.state_dict())
    images = images_for(both)
    assert torch.equal(again.eval()(images), both(images))


def test_what_cannot_be_cut_is_refused_and_unchanged():
    model = made()
    with pytest.raises(UserError, match="all 6 blocks are named; one has to stay"):
        cures.apply(model, "cut")
    with pytest.raises(UserError, match="no block 9"):
        cures.apply(model, "cut@9")
    assert len(model.blocks) == 6
    assert not hasattr(model, "deepvit_cures")
    remembers = cures.apply(made(), "value_residual")
    with pytest.raises(UserError, match="block 0 hands its values on"):
        cures.apply(remembers, "cut@0")
    assert cures.apply(remembers, "cut@5")(images_for(remembers)).shape == (2, 4)
    hiera = timm.create_model("hiera_tiny_224", num_classes=2)
    with pytest.raises(UserError, match="its blocks change the width"):
        cures.apply(hiera, "cut@1")


def test_auto_takes_what_the_report_recommends_and_nothing_else():
    told = {
        "verdict": {
            "kind": "idle",
            "collapsed": False,
            "from_block": 4,
            "cures": [{"name": "cut", "blocks": "4-5"}],
        }
    }
    assert len(cures.apply(made(), "cut@auto", report=told).blocks) == 4
    collapse = {"verdict": {"kind": "maps_alike", "collapsed": True, "from_block": 3, "cures": []}}
    with pytest.raises(UserError, match="names no blocks for cut"):
        cures.apply(made(), "cut@auto", report=collapse)


@pytest.fixture
def run(tmp_path):
    model = made()
    card = ModelCard(
        "vit_tiny_patch16_224", {k: ARGS[k] for k in ("img_size", "depth")},
        InputSpec(32), facts={"class_names": list("abcd")},
    )  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    save_deployed(folder, model, card)
    return folder, model


@torch.no_grad()
def test_a_run_is_cut_saved_and_loaded(run, tmp_path):
    folder, model = run
    costs = cut_run(folder, "3-5", tmp_path / "cut")
    loaded, card = load_deployed(tmp_path / "cut")
    images = images_for(model)
    torch.testing.assert_close(loaded(images), cures.apply(model, "cut@3-5")(images))
    assert card.cures == [{"name": "cut", "blocks": [3, 4, 5], "options": {}}]
    assert (
        costs["after"].parameters == sum(p.numel() for p in loaded.parameters()) < costs["before"].parameters
    )
    assert costs["after"].seconds_per_image > 0
    with pytest.raises(UserError, match="holds something already"):
        cut_run(folder, "3-5", tmp_path / "cut")


def test_time_follows_depth():
    whole, half = made(embed_dim=192, num_heads=3), made(embed_dim=192, num_heads=3)
    cures.apply(half, "cut@1-5")
    before, after = cost(whole, half, images=torch.randn(8, 3, 32, 32))
    assert after.seconds_per_image < before.seconds_per_image
