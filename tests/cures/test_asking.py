"""How cures are asked for: syntax, blocks, options, reports, exclusions, and what is refused in one line."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import timm
import torch
from cures.small_vits import KINDS, SMALL, stir

from deepvit import cures
from deepvit.collapse.results import Cure as Advice
from deepvit.collapse.results import Verdict
from deepvit.cures import Wanted
from deepvit.errors import UserError

ISSUE = {
    "reattention", "talking_heads", "layerscale", "attnscale", "centred_attention", "featscale", "neutreno",
    "value_residual", "contranorm", "sigma_reparam", "qk_norm", "registers", "differential_attention",
}  # fmt: skip


def test_the_registry_and_its_table():
    assert set(cures.CURES) >= ISSUE
    rows = {row["name"]: row for row in cures.table()}
    assert set(rows) == set(cures.CURES)
    assert rows["attnscale"]["fused attention"] == "kept"
    assert rows["talking_heads"]["fused attention"] == "replaced"
    assert rows["registers"]["start on trained weights"] == "changes the function"
    assert all(
        len(row["mechanism"]) < 100 and re.search("arXiv|ICLR", row["source"]) for row in rows.values()
    )


def test_each_cure_says_what_when_and_whence():
    import importlib

    for name in cures.CURES:
        text = importlib.import_module(f"deepvit.cures.{name}").__doc__
        for word in ("Mechanism:", "Formula:", "Source:", "Cost:", "Start:", "Helps:"):
            assert word in text, (name, word)


def test_syntax():
    assert cures.parse("reattention,layerscale") == [Wanted("reattention"), Wanted("layerscale")]
    assert cures.parse("attnscale@last:6 + featscale") == [Wanted("attnscale", "last:6"), Wanted("featscale")]
    assert cures.parse(["neutreno", "featscale@5-11"]) == [Wanted("neutreno"), Wanted("featscale", "5-11")]
    assert cures.parse("cut@3,8-11,layerscale") == [Wanted("cut", "3,8-11"), Wanted("layerscale")]
    assert cures.parse(["cut@1, first:2", "featscale@5-11"]) == [
        Wanted("cut", "1,first:2"),
        Wanted("featscale", "5-11"),
    ]
    with pytest.raises(UserError, match="no cure '3'"):
        cures.parse("3,cut@1")
    assert cures.parse("") == []


def test_methods():
    assert cures.parse_method("plain") == cures.Method("", (), False)
    assert cures.parse_method("diversity") == cures.Method("", (), True)
    method = cures.parse_method("reattention+diversity")
    assert (method.cures, method.diversity) == ("reattention", True)
    method = cures.parse_method("attnscale@last:6+layerscale+diversity")
    assert method == cures.Method("attnscale@last:6+layerscale", ("attnscale", "layerscale"), True)
    assert [str(w) for w in cures.parse(method.cures)] == ["attnscale@last:6", "layerscale"]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [("all", [0, 1, 2]), ("last:2", [1, 2]), ("first:1", [0]), ("1-2", [1, 2]), ([0, 2], [0, 2]), (1, [1])],
)
def test_blocks(make, blocks, expected):
    model = cures.apply(make(), "attnscale", blocks=blocks)
    assert [hasattr(b.attn, "attn_scale") for b in model.blocks] == [n in expected for n in range(3)]
    assert model.deepvit_cures == [{"name": "attnscale", "blocks": expected, "options": {}}]


def test_blocks_of_its_own_go_first(make):
    model = cures.apply(make(), "attnscale@last:1+layerscale", blocks="first:2")
    assert {r["name"]: r["blocks"] for r in model.deepvit_cures} == {"attnscale": [2], "layerscale": [0, 1]}


def test_options(make):
    model = cures.apply(make(), "neutreno", init="paper", strength=0.4)
    assert model.deepvit_cures[0]["options"] == {"init": "paper", "strength": 0.4}
    model = cures.apply(
        make(), "neutreno,layerscale", init="paper", options={"layerscale": {"init": "identity"}}
    )
    inits = {r["name"]: r["options"]["init"] for r in model.deepvit_cures}
    assert inits == {"layerscale": "identity", "neutreno": "paper"}


def verdict(**changes):
    told = {"kind": "maps_alike", "collapsed": True, "from_block": 1, **changes}
    return Verdict(**told)


def test_auto_reads_the_verdict(make, tmp_path):
    advised = verdict(cures=[Advice("reattention", "last:1", "why")])
    report = SimpleNamespace(verdict=advised)
    model = cures.apply(make(), "reattention", blocks="auto", report=report)
    assert model.deepvit_cures[0]["blocks"] == [2]
    model = cures.apply(make(), "layerscale@auto", report=report)  # not advised: from where it begins
    assert model.deepvit_cures[0]["blocks"] == [1, 2]
    path = tmp_path / "collapse.json"
    path.write_text(
        json.dumps({"verdict": {"kind": "maps_alike", "collapsed": True, "from_block": 2, "cures": []}})
    )
    model = cures.apply(make(), "layerscale", blocks="auto", report=path)
    assert model.deepvit_cures[0]["blocks"] == [2]
    healthy = SimpleNamespace(verdict=verdict(kind="healthy", collapsed=False, from_block=None))
    for bad, words in (
        (None, "give report="),
        (healthy, r"names no blocks for layerscale \(verdict: healthy\)"),
        (SimpleNamespace(verdict=verdict(from_block=7)), "of a deeper model"),
        ({"x": 1}, "no verdict"),
        (tmp_path / "none.json", "cannot be read"),
    ):
        with pytest.raises(UserError, match=words):
            cures.apply(make(), "layerscale", blocks="auto", report=bad)
    with pytest.raises(UserError, match="no cure asks for blocks 'auto'"):
        cures.apply(make(), "layerscale", report=report)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("reattention", "talking_heads"),
        ("reattention", "attnscale"),
        ("attnscale", "centred_attention"),
        ("differential_attention", "neutreno"),
        ("neutreno", "value_residual"),
        ("talking_heads", "centred_attention"),
    ],
)
def test_exclusions_in_one_block_only(make, first, second):
    model = make()
    keys = list(model.state_dict())
    for order in ((first, second), (second, first)):
        with pytest.raises(UserError, match="exclude each other and both ask for block 1"):
            cures.apply(model, order, blocks="1-2")
    assert list(model.state_dict()) == keys
    cures.apply(model, [f"{first}@1", f"{second}@2"])
    with pytest.raises(UserError, match="exclude each other"):
        cures.apply(model, second, blocks=[1])
    with pytest.raises(UserError, match=f"has {first} already in block 1"):
        cures.apply(model, first, blocks=[1])


def test_a_refusal_of_the_second_leaves_the_first_out(make):
    model = make("layerscale")
    keys = list(model.state_dict())
    with pytest.raises(UserError, match="layerscale already"):
        cures.apply(model, "reattention,layerscale,sigma_reparam")
    assert list(model.state_dict()) == keys
    assert not hasattr(model, "deepvit_cures")
    assert {p.device.type for p in model.parameters()} == {"cpu"}


def test_reapply_needs_a_bare_model(make):
    model = cures.apply(make(), "featscale")
    with pytest.raises(UserError, match="has cures already"):
        cures.reapply(model, model.deepvit_cures)
    with pytest.raises(UserError, match="a cure 'x' that this version does not have"):
        cures.reapply(make(), [{"name": "x", "blocks": [0], "options": {}}])
    shallow = timm.create_model(KINDS["plain"][0], **{**SMALL, "depth": 2})
    with pytest.raises(UserError, match="block"):
        cures.reapply(shallow, model.deepvit_cures)


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(1, 1),
        num_heads=(2, 2),
    )


OTHERS = {
    "resnet": lambda: timm.create_model("resnet10t"),
    "swin": swin,
    "beit": lambda: timm.create_model("beit_base_patch16_224", depth=1, embed_dim=48, num_heads=4),
    "eva": lambda: timm.create_model("eva02_tiny_patch14_224", depth=1, embed_dim=48, num_heads=4),
    "mixer": lambda: timm.create_model("mixer_s32_224"),
    "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=1),
    "sam": lambda: timm.create_model(
        "samvit_base_patch16", img_size=64, depth=2, embed_dim=48, num_heads=4, num_classes=5
    ),
    "gated": lambda: timm.create_model("vit_tiny_patch16_224", depth=1, scale_attn_norm=True),
}


@pytest.mark.parametrize(
    ("model", "ask", "words"),
    [
        ("plain", "reatention", r"no cure 'reatention' \(did you mean reattention\?\)"),
        ("plain", "attnscale@last:9", "attnscale|only 3 blocks"),
        ("plain", "attnscale@3", "block.*3"),
        ("plain", "attnscale@none", "names no block"),
        ("plain", "attnscale@", "a part is empty"),
        ("plain", "attnscale,,featscale", "a part is empty"),
        ("plain", "", "no cure is named"),
        ("plain", "attnscale,attnscale@1", "names attnscale twice"),
        ("plain", "registers@last:1", "changes the whole model and takes no blocks"),
        ("plain", "neutreno@0", "names none"),
        ("plain", ("neutreno", {"strength": 0.3}), "strength is the fixed λ"),
        ("plain", ("contranorm", {"strength": 0.3}), "strength is the fixed s"),
        ("plain", ("neutreno", {"strenght": 0.3}), "no option 'strenght'; it has init, strength"),
        ("plain", ("attnscale", {"x": 1}), "no option 'x'; it has none"),
        ("plain", ("layerscale", {"init": "x"}), "choose identity or paper"),
        ("plain", ("qk_norm", {"norm": "batch"}), "choose layer or rms"),
        ("plain", ("registers", {"count": 0}), "at least 1"),
        ("plain", ("sigma_reparam", {"where": "x"}), "choose all or attention"),
        ("plain", ("neutreno,layerscale", {"strength": 1}), "for which cure"),
        ("plain", ("neutreno", {"options": {"layerscale": {}}}), "not among the cures neutreno"),
        ("resnet", "attnscale", "ResNet cannot take attnscale: it has no transformer blocks"),
        ("swin", "layerscale", "SwinTransformer cannot take layerscale"),
        ("mixer", "attnscale", r"blocks.0 \(MixerBlock\) has no 'attn'"),
        (
            "beit",
            "reattention",
            r"attn is timm.models.beit.Attention, which cannot .*; it needs timm.layers.attention.Attention",
        ),
        ("sam", "attnscale", r"it needs AttentionRope or timm.layers.attention.Attention"),
        ("sam", "contranorm", r"blocks.0 \(Block\) attends in windows, which cannot take contranorm"),
        ("eva", "attnscale", "blocks.0.attn is EvaAttention, which cannot take attnscale"),
        ("distilled", "registers", "VisionTransformerDistilled cannot take registers"),
        ("gated", "talking_heads", "scale_norm"),
    ],
)
def test_mistakes_are_one_clear_line(make, model, ask, words):
    built = make(model) if model in KINDS else OTHERS[model]()
    name, options = ask if isinstance(ask, tuple) else (ask, {})
    with pytest.raises(UserError, match=words) as error:
        cures.apply(built, name, **options)
    assert "\n" not in str(error.value)
    assert not hasattr(built, "deepvit_cures")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain+diversity", "plain stands alone"),
        ("diversity+diversity", "names diversity twice"),
        ("reattention+diversty", r"no 'diversty' \(did you mean diversity\?\)"),
        ("diversity@last:3", "diversity takes no blocks"),
        ("", "there is no ''"),
        ("attnscale+attnscale", "names attnscale twice"),
    ],
)
def test_wrong_methods_are_one_clear_line(text, words):
    with pytest.raises(UserError, match=words):
        cures.parse_method(text)


def test_wide_heads_for_differential_attention(make):
    model = (
        make(**{}) if False else timm.create_model("vit_tiny_patch16_224", embed_dim=45, num_heads=3, depth=1)
    )
    with pytest.raises(UserError, match="heads of width 15"):
        cures.apply(model, "differential_attention")


def test_featscale_takes_the_mean_over_a_whole_grid_of_tokens():
    model = cures.apply(OTHERS["sam"]().eval(), "featscale")
    plain, block = OTHERS["sam"]().eval(), model.blocks[1]
    plain.load_state_dict(model.state_dict(), strict=False)
    stir(model, "feat_scale")
    tokens = torch.randn(2, 4, 4, 48)
    expected = plain.blocks[1](tokens)
    mean = expected.mean(dim=(1, 2), keepdim=True)
    s, t = block.feat_scale.mean_gain, block.feat_scale.rest_gain
    torch.testing.assert_close(block(tokens), expected + s * mean + t * (expected - mean))
