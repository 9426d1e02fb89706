"""The registered models: published sizes, and what timm users expect of a Vision Transformer."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.optim import param_groups_layer_decay

from deepvit import models
from deepvit.errors import UserError
from deepvit.layers import ReAttention
from deepvit.models import ConvStem, DeepVisionTransformer, ResidualScaleBlock

# Millions of parameters; blocks; width; blocks with Re-attention (papers.md).
PUBLISHED = {
    "deepvit_d16_patch16_224": (24.427, 16, 384, 16),
    "deepvit_d24_patch16_224": (36.261, 24, 384, 24),
    "deepvit_d32_patch16_224": (48.096, 32, 384, 32),
    "deepvit_s_patch16_224": (27.313, 16, 396, 5),
    "deepvit_l_patch16_224": (58.884, 32, 420, 12),
    "deepvit_l_patch16_384": (None, 32, 420, 12),
}
VARIANTS = ("deepvit_d16_patch16_224", "deepvit_s_patch16_224", "deepvit_l_patch16_224")


def millions(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def with_reattention(model: Any) -> list[int]:
    return [i for i, block in enumerate(model.blocks) if isinstance(block.attn, ReAttention)]


def images(size: int = 32, count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_and_their_plain_twins(name: str) -> None:
    size, depth, width, mixed = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name)
        twin = timm.create_model(name, reattention_blocks="none")
    if size is not None:
        assert round(millions(model), 3) == size
    assert (len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads) == (depth, width, 12)
    assert with_reattention(model) == list(range(depth - mixed, depth)) == list(model.reattention_blocks)
    assert with_reattention(twin) == []
    # Θ with its bias, gain and shift of the norm: nothing else is different in the twin.
    assert millions(model) - millions(twin) == pytest.approx(mixed * (12 * 12 + 3 * 12) / 1e6)
    assert {b.attn.rescale for b in model.blocks if isinstance(b.attn, ReAttention)} == {"_s_" in name}
    assert (
        isinstance(model.patch_embed, ConvStem)
        == (model.blocks[0].residual_scale == 0.5)
        == ("_d" not in name)
    )
    assert {block.norm1.eps for block in model.blocks} == {1e-6}


def test_registered_and_listed() -> None:
    assert set(PUBLISHED) < set(models.names()) == set(timm.list_models("deepvit*"))


def test_the_small_network_takes_small_images() -> None:
    model = timm.create_model("deepvit_tiny_d16_patch4_32", num_classes=10)
    assert model(images()).shape == (2, 10)
    assert resolve_model_data_config(model)["input_size"] == (3, 32, 32)
    assert with_reattention(model) == list(range(16))


def test_importing_the_models_needs_neither_lightning_nor_transformers() -> None:
    heavy = ("lightning", "transformers", "datasets", "matplotlib", "plotly")
    code = f"import sys, deepvit.models; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "size", "crop"), [("deepvit_s_patch16_224", 224, 0.9), ("deepvit_l_patch16_384", 384, 1.0)]
)
def test_data_config(name: str, size: int, crop: float) -> None:
    with torch.device("meta"):
        config = resolve_model_data_config(timm.create_model(name))
    assert config["input_size"] == (3, size, size)
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    assert config["crop_pct"] == crop


def test_first_convolution_follows_the_stem(tiny: dict[str, Any]) -> None:
    for stem, first in (("conv", "patch_embed.conv1"), ("linear", "patch_embed.proj")):
        model = timm.create_model("deepvit_s_patch16_224", stem=stem, **tiny, in_chans=1)
        assert model.pretrained_cfg["first_conv"] == first
        assert model.get_submodule(first).in_channels == 1
        assert model(images(channels=1)).shape == (2, 5)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_head_intermediates(name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny).eval()
    x = images()
    features = model.forward_features(x)
    assert features.shape == (2, 17, 48)
    assert torch.equal(model.forward_head(features), model(x))
    assert model.forward_head(features, pre_logits=True).shape == (2, 48)
    final, grids = model.forward_intermediates(x, indices=[0, 2])
    assert [tuple(g.shape) for g in grids] == [(2, 48, 4, 4)] * 2
    assert torch.equal(final, features)
    assert torch.equal(model.norm(grids[1].flatten(2).mT), features[:, 1:])
    backbone = timm.create_model(name, features_only=True, out_indices=(0, 2), **tiny).eval()
    assert [tuple(g.shape) for g in backbone(x)] == [(2, 48, 4, 4)] * 2
    assert backbone.feature_info.reduction() == [8, 8]


def test_classifier_and_pooling(tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_d16_patch16_224", **tiny, drop_rate=0.1).eval()
    x = images()
    features = model.forward_features(x)
    model.reset_classifier(0)
    assert torch.equal(model(x), features[:, 0])
    model.reset_classifier(9, global_pool="avg")
    assert model(x).shape == (2, 9)
    assert torch.allclose(model.forward_head(features, pre_logits=True), features[:, 1:].mean(1))
    averaged = timm.create_model("deepvit_s_patch16_224", **tiny, global_pool="avg")
    assert isinstance(averaged.norm, torch.nn.Identity)
    assert averaged(x).shape == (2, 5)


def test_without_class_token_and_with_registers(tiny: dict[str, Any]) -> None:
    bare = timm.create_model("deepvit_d16_patch16_224", **tiny, class_token=False)
    assert bare.global_pool == "avg"
    assert bare.forward_features(images()).shape == (2, 16, 48)
    assert bare(images()).shape == (2, 5)
    with pytest.raises(UserError, match="global_pool='token' needs the class token"):
        timm.create_model("deepvit_d16_patch16_224", **tiny, class_token=False, global_pool="token")
    assert timm.create_model("deepvit_d16_patch16_224", **tiny, reg_tokens=3).forward_features(
        images()
    ).shape == (2, 20, 48)


@pytest.mark.parametrize("stem", ["linear", "conv"])
def test_dynamic_image_size_and_padding(stem: str, tiny: dict[str, Any]) -> None:
    fixed = timm.create_model("deepvit_d16_patch16_224", stem=stem, **tiny).eval()
    free = timm.create_model("deepvit_d16_patch16_224", stem=stem, **tiny, dynamic_img_size=True).eval()
    free.load_state_dict(fixed.state_dict())
    assert torch.allclose(free(images()), fixed(images()), atol=1e-6)
    assert free.forward_features(images(48)).shape == (2, 37, 48)
    with pytest.raises(AssertionError, match=r"36"):
        free(images(36))
    with pytest.raises(AssertionError, match=r"48"):
        fixed(images(48))
    padded = timm.create_model(
        "deepvit_d16_patch16_224",
        stem=stem,
        **{**tiny, "img_size": 30},
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    assert padded.forward_features(images(36)).shape == (2, 26, 48)


@pytest.mark.parametrize("patch", [2, 4, 16])
def test_conv_stem_covers_whole_patches(patch: int, tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_s_patch16_224", **{**tiny, "patch_size": patch})
    stem = model.patch_embed
    assert stem.proj.kernel_size == stem.proj.stride == (patch // 2, patch // 2)
    assert model.forward_features(images()).shape == (2, 1 + (32 // patch) ** 2, 48)


def test_conv_stem_refuses_odd_patches_and_a_change_of_patch(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="use an even patch_size or stem='linear'"):
        timm.create_model("deepvit_s_patch16_224", **{**tiny, "img_size": 35, "patch_size": 5})
    model = timm.create_model("deepvit_s_patch16_224", **tiny)
    with pytest.raises(UserError, match="patch_size=4"):
        model.set_input_size(patch_size=4)
    model.set_input_size(img_size=48)
    assert model.eval().forward_features(images(48)).shape == (2, 37, 48)


@pytest.mark.parametrize("width", [132, 140])
def test_odd_head_widths_train(width: int) -> None:
    model = timm.create_model(
        "deepvit_s_patch16_224", img_size=32, depth=2, embed_dim=width, num_heads=4, reattention_blocks="all"
    )
    assert model.blocks[0].attn.head_dim == width // 4
    model(images()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_residual_scale_block_is_its_formula() -> None:
    torch.manual_seed(0)
    block = ResidualScaleBlock(residual_scale=0.25, dim=24, num_heads=3, init_values=0.5)
    x = torch.randn(2, 7, 24)
    middle = x + block.ls1(block.attn(block.norm1(0.25 * x))) / 0.25
    expected = middle + block.ls2(block.mlp(block.norm2(0.25 * middle))) / 0.25
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_drop_path_rates_rise_with_depth(tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_s_patch16_224", **tiny, drop_path_rate=0.2)
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in model.blocks] == pytest.approx([0.0, 0.1, 0.2])
    model.train()
    torch.manual_seed(0)
    first = model(images())
    assert not torch.equal(first, model(images()))


def test_gradient_checkpointing_changes_nothing(tiny: dict[str, Any]) -> None:
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("deepvit_s_patch16_224", **tiny)
        model.set_grad_checkpointing(enable)
        logits = model(images())
        logits.square().sum().backward()
        results.append((logits, [p.grad for p in model.parameters()], list(model.buffers())))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results[0][2], results[1][2], strict=True))


def test_layer_decay_and_no_decay(tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_s_patch16_224", **tiny)
    groups = param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(scale) == len(list(model.parameters()))
    named = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert named["head.weight"][0] == 1.0
    assert [named[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [
        (0.5**3, 0.05),
        (0.5**2, 0.05),
        (0.5, 0.05),
    ]
    assert named["patch_embed.conv1.weight"] == named["patch_embed.proj.weight"] == (0.5**4, 0.05)
    assert named["pos_embed"] == named["cls_token"] == named["patch_embed.bn1.weight"] == (0.5**4, 0.0)
    assert named["blocks.2.attn.reatten_matrix.weight"][1] == 0.05
    assert named["blocks.2.attn.var_norm.weight"][1] == 0.0


@pytest.mark.parametrize("name", VARIANTS)
def test_another_resolution_resizes_the_position_table(
    name: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    small = timm.create_model(name, **tiny)
    file = tmp_path / "small.safetensors"
    save_file(small.state_dict(), file)
    large = {**tiny, "img_size": 64}
    by_path = timm.create_model(name, **large, checkpoint_path=str(file))
    by_cfg = timm.create_model(
        name, **large, pretrained=True, pretrained_cfg_overlay={"file": str(file), "num_classes": 5}
    )
    by_filter = timm.create_model(name, **large)
    by_filter.load_state_dict(checkpoint_filter_fn(small.state_dict(), by_filter))
    by_state = timm.create_model(name, **large)
    by_state.load_state_dict(small.state_dict())
    assert by_path.pos_embed.shape == (1, 65, 48)
    for model in (by_cfg, by_filter, by_state):
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), by_path.state_dict().values(), strict=True)
        )
    assert torch.equal(by_path.pos_embed[:, :1], small.pos_embed[:, :1])
    # Bicubic and antialiased: a table that is constant over the grid stays so, one that varies stays near.
    assert torch.allclose(by_path.pos_embed[:, 1:].mean(1), small.pos_embed[:, 1:].mean(1), atol=0.01)
    assert small.state_dict()["pos_embed"].shape == (1, 17, 48)


def test_a_table_that_is_no_square_is_an_error(tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_d16_patch16_224", **tiny)
    state = model.state_dict()
    state["pos_embed"] = state["pos_embed"][:, :15]
    with pytest.raises(RuntimeError, match="size mismatch for pos_embed"):
        model.load_state_dict(state)


def test_safetensors_round_trip(tiny: dict[str, Any], tmp_path: Path) -> None:
    model = timm.create_model("deepvit_l_patch16_224", **tiny).eval()
    file = tmp_path / "weights.safetensors"
    save_file(model.state_dict(), file)
    again = timm.create_model("deepvit_l_patch16_224", **tiny, checkpoint_path=file).eval()
    assert torch.equal(again(images()), model(images()))
    assert load_file(file).keys() == model.state_dict().keys()


def test_initialisation_of_theta_survives_the_models_own(tiny: dict[str, Any]) -> None:
    for scheme in ("", "jax", "moco"):
        model = timm.create_model(
            "deepvit_d16_patch16_224", **tiny, theta_init="identity", weight_init=scheme
        )
        model.init_weights()
        for block in model.blocks:
            assert torch.equal(block.attn.reatten_matrix.weight[:, :, 0, 0], torch.eye(4))
            assert not block.attn.reatten_matrix.bias.any()
    mixing = timm.create_model("deepvit_d16_patch16_224", **tiny).blocks[0].attn.reatten_matrix.weight
    assert 0 < mixing.abs().max() <= 1 / math.sqrt(4)


def test_norm_option(tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_d16_patch16_224", **tiny, reattention_norm="none")
    assert not any("var_norm" in key for key in model.state_dict())
    assert model(images()).shape == (2, 5)


@pytest.mark.parametrize("name", ["deepvit_d16_patch16_224", "deepvit_s_patch16_224"])
def test_compile_and_export_in_evaluation(name: str, tiny: dict[str, Any]) -> None:
    model = timm.create_model(name, **tiny).eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(x), expected, atol=1e-5)
        program = torch.export.export(
            model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
        )
        many = images(count=5)
        assert torch.allclose(program.module()(many), model(many), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"embed_dim": 50},
            "embed_dim=50 is not divisible by num_heads=4: use embed_dim=48 or 52, or num_heads=2 or 5",
        ),
        ({"img_size": 30}, "patch_size=8 does not divide img_size=30: use img_size=24 or 32"),
        ({"img_size": (32, 36)}, "patch_size=8 does not divide img_size="),
        ({"stem": "convolutional"}, "stem='convolutional' is unknown: use one of linear, conv"),
        ({"residual_scale": 0.0}, "residual_scale=0.0 must be above 0"),
        ({"reattention_blocks": "last:9"}, "the network has only 3 blocks"),
        ({"block_fn": ResidualScaleBlock}, "block_fn cannot be given"),
        ({"backend": "cuda"}, "backend='cuda' is unknown"),
    ],
)
def test_slips_are_one_line(changed: dict[str, Any], words: str, tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        DeepVisionTransformer(**{**tiny, **changed})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shallow_variant_keeps_its_last_blocks(tiny: dict[str, Any]) -> None:
    model = timm.create_model("deepvit_l_patch16_224", **tiny)
    assert with_reattention(model) == [0, 1, 2]
    assert with_reattention(timm.create_model("deepvit_l_patch16_224", **{**tiny, "depth": 14}))[0] == 2
    assert with_reattention(timm.create_model("deepvit_l_patch16_224", **tiny, reattention_blocks=[1])) == [1]
