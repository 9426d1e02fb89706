"""What capture promises of any model: bits unchanged, hooks gone, consumers served, clear refusals."""

from __future__ import annotations

import weakref

import pytest
import timm
import torch
import torchvision
from torch import nn

from deepvit.capturing import attention_blocks, capture
from deepvit.errors import UserError

BLOCKS = ["blocks.0", "blocks.1", "blocks.2"]


def tiny(name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{"img_size": 64, "depth": 3, "num_classes": 5, **options}).eval()


class Encoder(nn.Module):
    """torch's own encoder, which runs as one kernel in evaluation."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True, **options)
        self.stem = nn.Conv2d(3, 48, 16, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.eval()

    def forward(self, x):
        return self.encoder(self.stem(x).flatten(2).mT)


def torch_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(64, 16, 2, 4, 48, 64, attention_dropout=0.1)
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


@pytest.fixture
def vit():
    return tiny()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def traces(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules()
    )


def test_maps_and_tokens_by_block_name(vit, images):
    with capture(vit) as seen:
        vit(images)
    assert list(seen.attention) == list(seen.tokens) == seen.blocks == BLOCKS
    assert seen.attention["blocks.1"].shape == (2, 3, 17, 17)
    assert seen.tokens["blocks.1"].shape == (2, 17, 192)
    assert seen.layout["blocks.1"].key_grid == seen.token_layout["blocks.1"].grid == (4, 4)
    assert seen.layout["blocks.1"].is_global_square
    assert not seen.attention["blocks.0"].requires_grad
    assert not seen.tokens["blocks.0"].requires_grad
    assert seen.images == 2
    assert seen.image_size == (64, 64)


@pytest.mark.parametrize(
    "build",
    [tiny, torch_vit, Encoder, lambda: Encoder(norm_first=True)],
    ids=["timm", "torchvision", "encoder", "encoder, norm first"],
)
@pytest.mark.parametrize("way", ["grad", "no_grad", "inference", "autocast", "train"])
def test_outputs_are_the_same_bits(build, way, images):
    model = build().train(way == "train")

    def run():
        torch.manual_seed(4)
        if way == "inference":
            with torch.inference_mode():
                return model(images)
        if way == "autocast":
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                return model(images)
        with torch.set_grad_enabled(way != "no_grad"):
            return model(images)

    expected, after = run(), torch.rand(())
    with capture(model) as seen:
        out = run()
    assert torch.equal(torch.rand(()), after), "random numbers were drawn"
    assert torch.equal(out, expected)
    assert out.requires_grad == expected.requires_grad
    assert len(seen.attention) == len(seen.tokens) >= 2
    assert all(m.dtype == torch.float32 for m in seen.attention.values())
    assert bool(seen.notes) == (way == "train")
    assert traces(model) == 0


def test_gradients_are_the_same_bits(vit, images):
    vit(images).sum().backward()
    expected = vit.blocks[0].attn.qkv.weight.grad.clone()
    vit.zero_grad()
    with capture(vit):
        vit(images).sum().backward()
    assert torch.equal(vit.blocks[0].attn.qkv.weight.grad, expected)


def test_blocks_run_again_in_a_backward_pass_are_not_seen_twice(images):
    model = tiny().train()
    model.set_grad_checkpointing()
    with capture(model) as seen:
        model(images).sum().backward()
    assert list(seen.attention) == BLOCKS
    assert seen.forwards == 1


def test_one_kernel_layers_are_verified_as_a_whole(images):
    model = Encoder()
    with torch.no_grad(), capture(model, qkv=True) as seen:
        model(images)
    assert list(seen.attention) == ["encoder.layers.0", "encoder.layers.1"]
    assert seen.queries["encoder.layers.0"].shape == (2, 4, 16, 12)
    assert {"encoder.layers.0", "encoder.layers.0 as a layer"} <= set(seen.checks)


def test_tokens_of_a_block_without_a_forward_are_read_after_it(images):
    from vit_pytorch import ViT

    torch.manual_seed(0)
    model = ViT(image_size=64, patch_size=16, num_classes=5, dim=48, depth=2, heads=4, mlp_dim=64).eval()
    with torch.no_grad(), capture(model) as seen:
        model(images)
    layers = model.transformer.layers
    tokens = seen.tokens["transformer.layers.0"]
    with torch.no_grad():
        tokens = layers[1][0](tokens) + tokens
        tokens = layers[1][1](tokens) + tokens
    torch.testing.assert_close(seen.tokens["transformer.layers.1"], tokens)
    assert seen.token_layout["transformer.layers.1"].read_from == "input of transformer.norm"


@pytest.mark.parametrize(
    ("name", "options", "block", "grid"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (56, 84), "depths": (1, 1), "num_heads": (3, 6), "embed_dim": 24},
            "layers.0.blocks.0",
            (14, 21),
        ),
        ("maxvit_rmlp_pico_rw_256", {"img_size": (64, 96)}, "stages.0.blocks.0", (16, 24)),
        ("pvt_v2_b0", {"img_size": None}, "stages.0.blocks.0", (16, 24)),
    ],
)
def test_tokens_on_a_grid_are_in_row_major_order(name, options, block, grid):
    options = {k: v for k, v in options.items() if v is not None}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **options).eval()
    outputs = []
    model.get_submodule(block).register_forward_hook(lambda _m, _a, out: outputs.append(out))
    size = options.get("img_size", (64, 96))
    with torch.no_grad(), capture(model, blocks=[block], attention=False) as seen:
        model(torch.randn(2, 3, *size))
    assert seen.token_layout[block].grid == grid
    (out,) = outputs
    channels = seen.token_layout[block].channels
    tokens = seen.tokens[block].unflatten(1, grid)
    if out.ndim == 3:
        out = out.unflatten(1, grid)
    elif out.shape[1] == channels:
        out = out.permute(0, 2, 3, 1)
    assert torch.equal(tokens, out)


def test_chosen_blocks_only_by_number_or_name(vit, images):
    for blocks in ([0, 2], ["blocks.0", "blocks.2"]):
        with capture(vit, blocks) as seen:
            vit(images)
        assert list(seen.attention) == list(seen.tokens) == ["blocks.0", "blocks.2"]


def test_attention_blocks_computes_no_map(vit, images, monkeypatch):
    monkeypatch.setattr("deepvit.capturing.watch.sdpa_map", None)
    assert attention_blocks(vit, images[:1]) == BLOCKS


def test_consumers_get_every_tensor_in_order_and_nothing_is_kept(vit, images):
    events, alive = [], []

    def on_attention(key, attention, layout):
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        events.append(("attention", key, layout.queries))
        assert [ref for ref in alive if ref() is not None] == []
        alive.append(weakref.ref(attention))

    def on_tokens(block, tokens, layout):
        events.append(("tokens", block, tokens.shape[1]))

    with capture(vit, on_attention=on_attention, on_tokens=on_tokens) as seen:
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                vit(images)
    once = [(what, block, 17) for block in BLOCKS for what in ("attention", "tokens")]
    assert events == once * 2
    assert not seen.attention
    assert not seen.tokens
    assert seen.forwards == seen.checks["blocks.0"].forwards == 2


def test_the_latest_pass_is_kept_and_parts_of_a_model_may_be_called(vit, images):
    with torch.no_grad(), capture(vit) as seen:
        vit.forward_features(torch.zeros_like(images))
        vit.forward_features(images)
    with torch.no_grad(), capture(vit) as once:
        vit(images)
    assert seen.forwards == 2
    assert list(seen.attention) == BLOCKS
    assert all(torch.equal(seen.attention[b], once.attention[b]) for b in BLOCKS)


def test_a_block_that_runs_twice_has_two_keys(images):
    model = tiny(depth=1)
    model.blocks.append(model.blocks[0])
    with capture(model) as seen:
        model(images)
    assert list(seen.attention) == ["blocks.0", "blocks.0#2"]


@pytest.mark.parametrize("build", [tiny, torch_vit, lambda: torch_vit().train()])
def test_nested_captures_see_the_same(build, images):
    model = build()
    with torch.no_grad(), capture(model) as outer, capture(model) as inner:
        model(images)
    assert list(outer.attention) == list(inner.attention)
    assert all(torch.equal(outer.attention[k], inner.attention[k]) for k in outer.attention)
    assert traces(model) == 0


@pytest.mark.parametrize("build", [tiny, torch_vit, Encoder])
def test_an_exception_leaves_nothing_behind(build, images):
    model = build()
    with torch.no_grad():
        expected = model(images)
    with pytest.raises(RuntimeError), capture(model):
        model(images[:, :2])
    assert traces(model) == 0
    assert not torch.overrides._get_current_function_mode_stack()
    with torch.no_grad(), capture(model):
        assert torch.equal(model(images), expected)


def test_an_exception_caught_inside_does_not_confuse_what_follows(vit, images):
    with torch.no_grad(), capture(vit) as seen:
        with pytest.raises(RuntimeError):
            vit(images[:, :2])
        vit(images[:1])
    assert seen.images == 1
    assert list(seen.attention) == list(seen.tokens) == BLOCKS


def test_a_map_that_is_not_the_one_is_an_error_by_name_or_flagged(vit, images, monkeypatch):
    from deepvit.capturing import watch

    def wrong(q, k, v, out, *rest):
        return original(2 * q, k, v, out, *rest)

    original = watch.sdpa_map
    monkeypatch.setattr(watch, "sdpa_map", wrong)
    nn.init.normal_(vit.blocks[0].attn.qkv.weight)
    with (
        pytest.raises(
            UserError, match=r"blocks\.0: the captured map does not give the model's own attention"
        ),
        capture(vit),
    ):
        vit(images)
    with capture(vit, on_mismatch="flag") as seen:
        vit(images)
    assert not seen.checks["blocks.0"].passed
    assert "blocks.0" in seen.attention


# --- prefix tokens ---


def test_prefix_tokens_may_be_given(vit, images):
    with capture(vit, prefix_tokens=2) as seen:
        vit(images)
    assert seen.layout["blocks.0"].key_prefix == seen.token_layout["blocks.0"].prefix == 2
    assert seen.layout["blocks.0"].decided.startswith("prefix_tokens=2 as asked for")


@pytest.mark.parametrize(
    ("name", "options", "prefix", "grid"),
    [
        ("deit_tiny_distilled_patch16_224", {}, 2, (4, 4)),
        ("vit_small_patch14_reg4_dinov2", {"img_size": (56, 84)}, 5, (4, 6)),
        ("vit_base_patch16_siglip_224", {"embed_dim": 48, "num_heads": 4}, 0, (4, 4)),
    ],
)
def test_prefix_tokens_are_told_from_patches(name, options, prefix, grid):
    model = tiny(name, **options)
    with capture(model) as seen:
        model(torch.randn(1, 3, *options.get("img_size", (64, 64))))
    layout = seen.layout["blocks.0"]
    assert (layout.key_prefix, layout.key_grid) == (prefix, grid)
    assert layout.keys == prefix + grid[0] * grid[1]


def test_prefix_tokens_are_probed_where_nothing_declares_them(vit, images):
    vit.num_prefix_tokens = None
    vit.cls_token = None
    vit._pos_embed = lambda x: torch.cat([torch.zeros(2, 3, 192), x], 1)
    with capture(vit) as seen:
        vit.forward_features(images)
    assert seen.layout["blocks.0"].key_prefix == 3
    assert "probed" in seen.layout["blocks.0"].decided


# --- refusals ---


@pytest.mark.parametrize("size", [64, 128], ids=["16 tokens", "as many tokens as channels in a head"])
def test_maps_over_channels_are_refused(size):
    model = timm.create_model("xcit_nano_12_p16_224", depth=2, num_heads=2, num_classes=5).eval()
    named = pytest.raises(UserError, match=r"blocks\.0\.attn: its attention maps are over channels \(64 x 64")
    with named, capture(model):
        model(torch.randn(2, 3, size, size))
    with capture(model, blocks=["cls_attn_blocks.0"]) as seen:  # its class attention is over tokens
        model(torch.randn(2, 3, size, size))
    assert seen.attention["cls_attn_blocks.0"].shape[2] == 1


def test_as_many_tokens_as_channels_is_no_reason_to_refuse(images):
    model = tiny(img_size=128, class_token=False, global_pool="avg", depth=1)  # 64 tokens, 3 heads of 64
    with capture(model) as seen:
        model(torch.randn(2, 3, 128, 128))
    assert seen.attention["blocks.0"].shape == (2, 3, 64, 64)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_a_network_without_attention_is_refused(name, images):
    model = timm.create_model(name, num_classes=5).eval()
    with pytest.raises(UserError, match="no attention over tokens was found in this model"), capture(model):
        model(images)


def test_what_was_seen_and_left_out_is_in_the_refusal(images):
    class Gated(nn.Module):
        def forward(self, x):
            return x * x.flatten(2).softmax(-1).view_as(x)

    model = nn.Sequential(nn.Identity(), Gated())
    named = pytest.raises(UserError, match="softmax of something that is no product of queries and keys")
    with named, capture(model):
        model(images)


def test_a_model_that_is_not_called_is_refused(vit):
    with pytest.raises(UserError, match="was not called inside the with block"), capture(vit):
        pass


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["blocks.7"], r"the model has no module 'blocks\.7'; its blocks are named like blocks\.0"),
        (
            [1, 3],
            r"blocks: 3 had no attention; the model's attention blocks are 0 to 2: blocks\.0 to blocks\.2",
        ),
        (["patch_embed"], "blocks: patch_embed had no attention"),
        ([-1], "numbers from 0 up"),
        ("blocks.0", "give a list"),
        ([], "give a list"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(vit, images, blocks, message):
    with pytest.raises(UserError, match=message), capture(vit, blocks):
        vit(images)


def test_models_that_cannot_be_watched_are_refused(vit, images):
    with pytest.raises(UserError, match=r"compiled.*model\._orig_mod"), capture(torch.compile(vit)):
        pass
    vit.blocks[1].compile()
    with pytest.raises(UserError, match=r"blocks\.1 \(Block\) is compiled"), capture(vit):
        pass
    with (
        pytest.raises(UserError, match="is scripted"),
        capture(torch.jit.trace(nn.Linear(2, 2), torch.ones(2))),
    ):
        pass
    with pytest.raises(UserError, match=r"capture needs a torch\.nn\.Module, not str"), capture("vit"):
        pass
    with pytest.raises(UserError, match="runs in several threads"), capture(nn.DataParallel(tiny())):
        pass
    with pytest.raises(UserError, match="choose 'error' or 'flag'"), capture(tiny(), on_mismatch="ignore"):
        pass
