"""Each lesion against a brute-force version of the same network, written here; and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from vit_pytorch import ViT as LucidViT

import deepvit.models  # noqa: F401 - registers the DeepViT models with timm
from deepvit.capturing import (
    DropAttention,
    EndAfter,
    ReplaceMap,
    ReplacePatches,
    SkipBlock,
    control,
    intervene,
    survey,
)
from deepvit.cures import apply
from deepvit.errors import UserError

SIZE = 64
CLOSE = {torch.float64: 1e-8, torch.float32: 1e-5}  # of the largest entry of the output


def spread(model: nn.Module) -> nn.Module:
    """Weights at which every part of the network matters."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        nn.init.normal_(p, std=(2.0 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.3)
        if p.ndim == 1 and name.endswith("weight"):  # of norms
            with torch.no_grad():
                p.add_(1.0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    return model.double().eval()


def of_timm(name: str, **options: Any) -> nn.Module:
    return spread(timm.create_model(name, num_classes=5, **{"img_size": SIZE, **options}))


def hugging_face(way: str) -> nn.Module:
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=SIZE,
        patch_size=16, attn_implementation=way, num_labels=5,
    )  # fmt: skip
    return spread(ViTForImageClassification(config))


def cured(cure: str) -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=3, num_classes=5, num_heads=6)
    apply(model, cure)
    return spread(model)


def lucid() -> nn.Module:
    return spread(
        LucidViT(image_size=SIZE, patch_size=16, num_classes=5, dim=48, depth=3, heads=4, mlp_dim=64)
    )


SWIN = {"img_size": 56, "depths": (2, 2), "num_heads": (3, 6), "embed_dim": 24}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: of_timm("vit_tiny_patch16_224", depth=3),
    "ViT, layer scale, registers": lambda: of_timm("vit_small_patch14_reg4_dinov2", depth=3, img_size=56),
    "Swin": lambda: of_timm("swin_tiny_patch4_window7_224", **SWIN),
    "Swin v2": lambda: of_timm("swinv2_tiny_window8_256", **{**SWIN, "img_size": 64, "window_size": 4}),
    "CaiT": lambda: of_timm("cait_xxs24_224", depth=3),
    "Hugging Face, sdpa": lambda: hugging_face("sdpa"),
    "Hugging Face, eager": lambda: hugging_face("eager").float(),  # its softmax is in float32 anyway
    "torchvision": lambda: spread(
        torchvision.models.VisionTransformer(SIZE, 16, 3, 4, 48, 64, num_classes=5)
    ),
    "vit-pytorch": lucid,
    "Re-attention": lambda: of_timm("deepvit_s_patch16_224", depth=3, reattention_blocks="all"),
    "cured: attnscale+neutreno": lambda: cured("attnscale+neutreno"),
    "cured: differential": lambda: cured("differential_attention"),
    "cured: talking heads": lambda: cured("talking_heads"),
    "parallel scaling": lambda: of_timm("vit_tiny_patch16_224", depth=3, block_fn=parallel()),
    "parallel things": lambda: of_timm("vit_small_patch16_18x2_224", depth=2, embed_dim=48, num_heads=4),
    "encoder, post-norm": lambda: Encoder(),
    "MaxViT": lambda: of_timm("maxvit_rmlp_pico_rw_256"),
    "PVT v2": lambda: spread(timm.create_model("pvt_v2_b0", num_classes=5)),
    "MViT v2": lambda: of_timm("mvitv2_tiny"),
    "DaViT": lambda: spread(timm.create_model("davit_tiny", num_classes=5)),
    "CoAtNet": lambda: of_timm("coatnet_nano_rw_224"),
    "LeViT": lambda: of_timm("levit_128s"),
}


def parallel() -> Any:
    from timm.models.vision_transformer import ParallelScalingBlock

    return ParallelScalingBlock


class Encoder(nn.Module):
    """torch's own encoder, which runs as one kernel when nobody watches; norms after the sums; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(48, 4, 64, batch_first=True)
        self.stem = nn.Conv2d(3, 48, 16, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        spread(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder(self.stem(x).flatten(2).mT)
        return {"tokens": tokens, "pooled": tokens.mean(1)}


def images_of(model: nn.Module) -> Tensor:
    size = (
        56
        if any(
            k in str(getattr(model, "default_cfg", {}).get("architecture", "")) for k in ("window7", "dinov2")
        )
        else SIZE
    )
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2)).to(
        next(model.parameters()).dtype
    )


def first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if hasattr(output, "values") else output[0]
    return output


@contextlib.contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """By hand: an instance's method replaced while inside."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = before


def agree(a: Any, b: Any) -> None:
    a, b = first(a), first(b)
    assert float((a - b).abs().max() / b.abs().max()) <= CLOSE[b.dtype]


def differ(a: Any, b: Any) -> None:
    a, b = first(a), first(b)
    assert float((a - b).abs().max() / b.abs().max()) > 10 * CLOSE[b.dtype], (
        "the lesion changes nothing here: no test"
    )


@pytest.mark.parametrize("name", MODELS)
def test_control_and_nothing_left_behind(name: str) -> None:
    model = MODELS[name]()
    images = images_of(model)
    before = traces(model)
    with torch.no_grad():
        plain = model(images)
        assert control(survey(model, images[:1]), images) <= (1e-8 if images.dtype == torch.float64 else 1e-5)
        assert torch.equal(first(model(images)), first(plain))
    assert traces(model) == before


def traces(model: nn.Module) -> int:
    """Hooks and replaced methods (some cures have such)."""
    parts = list(model.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in parts)


# --- blocks ---

STREAM = {  # where the blocks are, and which argument is the stream
    "ViT": "blocks", "ViT, layer scale, registers": "blocks", "CaiT": "blocks", "Re-attention": "blocks",
    "cured: attnscale+neutreno": "blocks", "parallel scaling": "blocks", "torchvision": "encoder.layers",
    "Hugging Face, sdpa": "vit.layers", "Hugging Face, eager": "vit.layers", "encoder, post-norm": "encoder.layers",
    "Swin": "layers.1.blocks", "Swin v2": "layers.1.blocks", "MaxViT": "stages.3.blocks",
}  # fmt: skip


@pytest.mark.parametrize("name", STREAM)
@torch.no_grad()
def test_a_skipped_block_and_an_early_end(name: str) -> None:
    model = MODELS[name]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    row = [b for b in anatomy.blocks if b.rpartition(".")[0] == STREAM[name]]
    plain, last = model(images), model.get_submodule(row[-1])
    with patched(last, "forward", lambda x, *_, **__: x):
        expected = model(images)
    differ(expected, plain)
    with intervene(anatomy, SkipBlock(row[-1])):
        agree(model(images), expected)
    if len(row) < 3:
        return
    earlier = model.get_submodule(row[-2])
    with (
        patched(last, "forward", lambda x, *_, **__: x),
        patched(earlier, "forward", lambda x, *_, **__: x),
    ):
        expected = model(images)
    with intervene(anatomy, EndAfter(row[-3])):
        agree(model(images), expected)
    with intervene(anatomy, SkipBlock(row[-1]), SkipBlock(row[-2])):
        agree(model(images), expected)


@torch.no_grad()
def test_class_attention_is_skipped_by_name_and_stays_when_the_network_ends_before_it() -> None:
    model = MODELS["CaiT"]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    with patched(model.blocks_token_only[1], "forward", lambda x, x_cls: x_cls):
        expected = model(images)
    with intervene(anatomy, SkipBlock("blocks_token_only.1")):
        agree(model(images), expected)
    assert [part.name for part in anatomy.after("blocks.1")] == ["blocks.2"]
    assert [part.name for part in anatomy.after("blocks_token_only.0")] == ["blocks_token_only.1"]


@torch.no_grad()
def test_blocks_without_a_forward_of_their_own() -> None:
    model = lucid()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    layers = model.transformer.layers

    def run(skip: set[int] = frozenset(), change: Callable[[int, Tensor], Tensor] = lambda i, x: x) -> Tensor:
        x = model.to_patch_embedding(images)
        x = torch.cat([model.cls_token.expand(2, -1, -1), x], 1) + model.pos_embedding
        for number, (attn, ff) in enumerate(layers):
            if number not in skip:
                x = attn(x) + x
                x = ff(x) + x
            x = change(number, x)
        return model.mlp_head(model.transformer.norm(x)[:, 0])

    agree(run(), model(images))
    for number in range(3):
        with intervene(anatomy, SkipBlock(f"transformer.layers.{number}")):
            agree(model(images), run({number}))
        if number < 2:

            def mean(i: int, x: Tensor, at: int = number) -> Tensor:
                return (
                    torch.cat([x[:, :1], x[:, 1:].mean(1, keepdim=True).expand(-1, 16, -1)], 1)
                    if i == at
                    else x
                )

            lesion = ReplacePatches(
                f"transformer.layers.{number}", lambda p: p.mean(1, keepdim=True).expand_as(p)
            )
            with intervene(anatomy, lesion):
                agree(model(images), run(change=mean))
            differ(run(change=mean), run())
    with intervene(anatomy, EndAfter("transformer.layers.0")):
        agree(model(images), run({1, 2}))


# --- attention branches ---


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("ViT", "blocks.1.attn"),
        ("ViT, layer scale, registers", "blocks.1.ls1"),
        ("Swin", "layers.1.blocks.1.attn"),
        ("Swin v2", "layers.1.blocks.1.norm1"),  # post-norm: the norm belongs to the branch
        ("CaiT", "blocks.1.attn"),
        ("CaiT", "blocks_token_only.1.attn"),
        ("Hugging Face, sdpa", "vit.layers.1.attention"),
        ("Hugging Face, eager", "vit.layers.1.attention"),
        ("torchvision", "encoder.layers.encoder_layer_1.self_attention"),
        ("vit-pytorch", "transformer.layers.1.0"),
        ("Re-attention", "blocks.1.attn"),
        ("cured: attnscale+neutreno", "blocks.1.attn"),
        ("cured: differential", "blocks.1.attn"),
        ("cured: talking heads", "blocks.1.attn"),
        ("encoder, post-norm", "encoder.layers.1.self_attn"),
        ("PVT v2", "stages.2.blocks.1.attn"),
        ("parallel things", "blocks.1.attns"),
        ("MaxViT", "stages.3.blocks.0.attn_grid.attn"),
    ],
)
@torch.no_grad()
def test_an_attention_that_adds_nothing(name: str, branch: str) -> None:
    model = MODELS[name]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    plain, module = model(images), model.get_submodule(branch)
    lesions = [
        DropAttention(k) for k, x in anatomy.seen.layout.items() if f"{x.module}.".startswith(f"{branch}.")
    ]
    lesions = lesions or [
        DropAttention(k) for k, x in anatomy.seen.layout.items() if branch.startswith(f"{k}.")
    ]

    def nothing(_module: nn.Module, _args: Any, output: Any) -> Any:
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else output * 0

    leaves = list(module) if isinstance(module, nn.ModuleList) else [module]
    handles = [leaf.register_forward_hook(nothing) for leaf in leaves]
    expected = model(images)
    for handle in handles:
        handle.remove()
    differ(expected, plain)
    with intervene(anatomy, *lesions):
        agree(model(images), expected)


@pytest.mark.parametrize(
    ("name", "block", "reason"),
    [
        ("parallel scaling", "blocks.1", "joined with something else"),
        ("parallel things", "blocks.1.attns.0", "joined with something else"),
    ],
)
@torch.no_grad()
def test_an_attention_that_is_joined_with_others_is_refused(name: str, block: str, reason: str) -> None:
    model = MODELS[name]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    with (
        pytest.raises(UserError, match=rf"{block}: its attention cannot be dropped: .*{reason}"),
        intervene(anatomy, DropAttention(block)),
    ):
        model(images)


# --- maps ---


def mean_map(own: Tensor, _earlier: object) -> Tensor:
    return own.mean(-2, keepdim=True).expand_as(own)


@contextlib.contextmanager
def maps_by_hand(change: Callable[[int, Tensor], Tensor], ours: bool = True) -> Iterator[None]:
    """Attention in the open, whoever computes it, with every map changed by ``change(number, map)``."""
    softmax, sdpa, mha = Tensor.softmax, F.scaled_dot_product_attention, F.multi_head_attention_forward
    count = [0]

    def next_map(p: Tensor) -> Tensor:
        count[0] += 1
        return change(count[0] - 1, p)

    def open_sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        return next_map(softmax(scores if attn_mask is None else scores + attn_mask, -1)) @ v

    def open_mha(query, key, value, width, heads, w, b, *rest, **kwargs):
        q, k, v = (
            t.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for t in F.linear(query, w, b).chunk(3, -1)
        )
        out = open_sdpa(q, k, v).permute(2, 0, 1, 3).flatten(2)
        return F.linear(out, rest[4], rest[5]), None

    F.scaled_dot_product_attention, F.multi_head_attention_forward = open_sdpa, open_mha
    if ours:
        F.softmax, function = (
            (lambda x, dim=-1, _stacklevel=3, **kw: next_map(softmax(x, dim, **kw))),
            F.softmax,
        )
        Tensor.softmax = lambda x, dim=-1, **kw: next_map(softmax(x, dim, **kw))
    try:
        yield
    finally:
        Tensor.softmax, F.scaled_dot_product_attention = softmax, sdpa
        F.multi_head_attention_forward = mha
        if ours:
            F.softmax = function


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ViT", 1),
        ("ViT, layer scale, registers", 2),
        ("Swin", 3),
        ("Swin v2", 3),
        ("Hugging Face, sdpa", 1),
        ("Hugging Face, eager", 1),
        ("torchvision", 1),
        ("encoder, post-norm", 1),
        ("vit-pytorch", 1),
        ("PVT v2", 5),
        ("MaxViT", 3),
        ("CoAtNet", 4),
    ],
)
@torch.no_grad()
def test_a_mean_map_and_the_map_of_the_block_before(name: str, number: int) -> None:
    model = MODELS[name]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    key, before = anatomy.keys[number], anatomy.keys[number - 1]
    model.train(False)
    plain = model(images)
    mean = ReplaceMap(key, mean_map)
    with maps_by_hand(lambda n, p: p.mean(-2, keepdim=True).expand_as(p) if n == number else p):
        expected = slow(model, images)
    differ(expected, plain)
    with intervene(anatomy, mean) as seen:
        agree(model(images), expected)
    assert seen.checks[key].passed
    if anatomy.seen.layout[key].queries != anatomy.seen.layout[before].queries or "PVT" in name:
        return
    if anatomy.seen.layout[key].windows != anatomy.seen.layout[before].windows:
        return
    kept: dict[int, Tensor] = {}

    def reuse(n: int, p: Tensor) -> Tensor:
        kept[n] = p
        return kept[n - 1] if n == number else p

    with maps_by_hand(reuse):
        expected = slow(model, images)
    differ(expected, plain)
    with intervene(anatomy, ReplaceMap(key, lambda _own, earlier: earlier[before], reads=(before,))):
        agree(model(images), expected)


def slow(model: nn.Module, images: Tensor) -> Any:
    """Without torch's one-kernel modules, which would pass by the functions that are replaced."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return model(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("backend", ["reference", "streaming", "native"])
@torch.no_grad()
def test_the_mixed_map_of_reattention(backend: str) -> None:
    model = MODELS["Re-attention"]().float()
    images = images_of(model).float()
    nn.init.normal_(model.blocks[1].attn.qkv.weight, std=0.2)
    model.blocks[1].attn.var_norm.weight.fill_(30.0)
    for block in model.blocks:
        block.attn.backend = backend
    anatomy = survey(model, images[:1])
    attn = model.blocks[1].attn

    def by_hand(x: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attn.var_norm(attn.reatten_matrix((q @ k.mT * attn.scale).softmax(-1)))
        mixed = (
            (mixed * attn.head_dim**-0.5 if attn.rescale else mixed)
            .mean(-2, keepdim=True)
            .expand(-1, -1, 17, -1)
        )
        return attn.proj((mixed @ v).transpose(1, 2).flatten(2))

    with patched(attn, "forward", by_hand):
        expected = model(images)
    differ(expected, model(images))
    with intervene(anatomy, ReplaceMap("blocks.1", mean_map)):
        agree(model(images), expected)


@pytest.mark.parametrize(
    ("cure", "softmaxes"), [("attnscale+neutreno", 1), ("differential_attention", 2), ("talking_heads", 1)]
)
@torch.no_grad()
def test_the_map_of_a_cured_block(cure: str, softmaxes: int) -> None:
    """The mean over queries goes through what a cure does to maps: mixing heads, taking a difference."""
    model = cured(cure)
    images = images_of(model)
    own = range(softmaxes, 2 * softmaxes)  # of block 1
    with maps_by_hand(lambda n, p: p.mean(-2, keepdim=True).expand_as(p) if n in own else p):
        expected = model(images)
    differ(expected, model(images))
    with intervene(survey(model, images[:1]), ReplaceMap("blocks.1", mean_map)):
        agree(model(images), expected)


# --- patches ---


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("ViT", "blocks.1"),
        ("ViT, layer scale, registers", "blocks.1"),
        ("Swin", "layers.0.blocks.1"),
        ("CaiT", "blocks.1"),
        ("Hugging Face, sdpa", "vit.layers.1"),
        ("torchvision", "encoder.layers.encoder_layer_1"),
        ("Re-attention", "blocks.1"),
        ("MaxViT", "stages.2.blocks.0"),
        ("CoAtNet", "stages.2.blocks.0"),
    ],
)
@torch.no_grad()
def test_patches_replaced_by_their_mean(name: str, block: str) -> None:
    model = MODELS[name]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    layout = anatomy.seen.token_layout[block]

    def mean(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        if out.ndim == 4:
            axes = (2, 3) if out.shape[1] == layout.channels else (1, 2)
            return out.mean(axes, keepdim=True).expand_as(out)
        out[:, layout.prefix :] = out[:, layout.prefix :].mean(1, keepdim=True)
        return out

    plain = model(images)
    handle = model.get_submodule(block).register_forward_hook(mean)
    expected = model(images)
    handle.remove()
    differ(expected, plain)
    with intervene(anatomy, ReplacePatches(block, lambda p: p.mean(1, keepdim=True).expand_as(p))):
        agree(model(images), expected)


# --- refusals ---


@torch.no_grad()
def test_what_cannot_be_done_is_refused_by_name() -> None:
    model = MODELS["MViT v2"]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    changing = [p.name for p in anatomy.parts.values() if "it returns" in p.why_not]
    assert changing == ["stages.1.blocks.0", "stages.2.blocks.0", "stages.3.blocks.0"]
    with (
        pytest.raises(UserError, match=r"stages\.1\.blocks\.0 cannot be skipped: it returns \(1, 64, 192\)"),
        intervene(anatomy, SkipBlock("stages.1.blocks.0")),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"cannot end after stages\.0\.blocks\.0: stages\.1\.blocks\.0 cannot"),
        intervene(anatomy, EndAfter("stages.0.blocks.0")),
    ):
        pass
    with (
        pytest.raises(UserError, match=r"blocks\.7: the model has no such"),
        intervene(anatomy, SkipBlock("blocks.7")),
    ):
        pass
    with (
        pytest.raises(UserError, match="the model has no such map"),
        intervene(anatomy, ReplaceMap("blocks.7", mean_map)),
    ):
        pass
    with (
        pytest.raises(UserError, match="did not run it inside the with block"),
        intervene(anatomy, SkipBlock("stages.0.blocks.0".replace("0.blocks.0", "2.blocks.1"))),
    ):
        pass
    with pytest.raises(UserError, match=r"model\.eval"):
        survey(model.train(), images)


@torch.no_grad()
def test_a_branch_is_no_block_and_a_map_has_its_shape() -> None:
    model = MODELS["parallel things"]()
    images = images_of(model)
    anatomy = survey(model, images[:1])
    with (
        pytest.raises(UserError, match=r"blocks\.0\.attns\.0 cannot be skipped: it is a branch"),
        intervene(anatomy, SkipBlock("blocks.0.attns.0")),
    ):
        pass
    vit = MODELS["ViT"]()
    with (
        pytest.raises(UserError, match=r"blocks\.1: its map \(2, 3, 17, 17\) was replaced by \(3, 3\)"),
        intervene(survey(vit, images), ReplaceMap("blocks.1", torch.eye(3))),
    ):
        vit(images)
    with (
        pytest.raises(UserError, match="were replaced by"),
        intervene(survey(vit, images), ReplacePatches("blocks.1", lambda p: p[:, :3])),
    ):
        vit(images)
    assert not any("forward" in m.__dict__ for m in vit.modules())


@torch.no_grad()
def test_a_model_that_fails_the_control_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepvit.capturing import layouts

    model = MODELS["ViT"]()
    images = images_of(model)
    right = layouts.Site.put
    monkeypatch.setattr(layouts.Site, "put", lambda self, m, v, out: right(self, m.roll(1, -1), v, out))
    with pytest.raises(
        UserError, match=r"VisionTransformer: the map of blocks\.0 replaced by itself changes"
    ):
        control(survey(model, images), images)
