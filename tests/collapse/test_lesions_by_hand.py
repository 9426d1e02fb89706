"""All six lesions of six kinds of networks against the same networks changed by hand, in the open, here."""

from __future__ import annotations

import contextlib

import pytest
import timm
import torch
import torch.nn.functional as F
from collapse.lesioned import working

from deepvit.collapse.lesions.measuring import measure_lesions
from deepvit.collapse.measuring import probe

KINDS = ("block", "attention", "map_reuse", "map_mean", "patch_mean", "exit")


def stirred(model):
    """Weights at which every part of the network matters."""
    torch.manual_seed(1)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=(2.0 / p[0].numel()) ** 0.5)
    return model.eval()


def swin():
    sizes = {"img_size": 56, "depths": (3, 2), "num_heads": (3, 6), "embed_dim": 24}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes)
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = (
                True  # timm leaves it off here; then every attention is one call that can be opened
            )
    return stirred(model)


def cait():
    model = stirred(timm.create_model("cait_xxs24_224", num_classes=5, img_size=64, depth=3))
    for name, p in model.named_parameters():
        if "gamma" in name:  # its branches start at next to nothing, of which no lesion would tell anything
            torch.nn.init.ones_(p)
    return model


def reattention():
    import deepvit.models  # noqa: F401 - registers the DeepViT models

    sizes = {"img_size": 64, "depth": 3, "reattention_blocks": "all"}
    return stirred(timm.create_model("deepvit_s_patch16_224", num_classes=5, **sizes))


def cured():
    from deepvit.cures import apply

    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=4)
    return stirred(apply(model, "value_residual+layerscale", init="paper"))


def hugging_face():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return stirred(ViTForImageClassification(ViTConfig(image_size=64, patch_size=16, num_labels=5, **sizes)))


# name → how to make it, its blocks and their attentions in order of execution, prefix tokens, side of an image
MODELS = {
    "ViT": (lambda: working(depth=4), [(f"blocks.{i}", f"blocks.{i}.attn") for i in range(4)], 1, 32),
    "Swin": (
        swin,
        [
            (f"layers.{s}.blocks.{i}", f"layers.{s}.blocks.{i}.attn")
            for s, n in ((0, 3), (1, 2))
            for i in range(n)
        ],
        0,
        56,
    ),
    "CaiT": (
        cait,
        [(f"blocks.{i}", f"blocks.{i}.attn") for i in range(3)]
        + [(f"blocks_token_only.{i}", f"blocks_token_only.{i}.attn") for i in range(2)],
        0,
        64,
    ),
    "Hugging Face": (
        hugging_face,
        [(f"vit.layers.{i}", f"vit.layers.{i}.attention") for i in range(3)],
        1,
        64,
    ),
    "Re-attention": (reattention, [(f"blocks.{i}", f"blocks.{i}.attn") for i in range(3)], 1, 64),
    "cured": (cured, [(f"blocks.{i}", f"blocks.{i}.attn") for i in range(4)], 1, 64),
}


@contextlib.contextmanager
def replaced(module, forward):
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


@contextlib.contextmanager
def maps_changed(model, change):
    """Every attention in the open; ``change(number, map)`` gives what multiplies V in the attention of that number."""
    count = [0]

    def next_map(a):
        count[0] += 1
        return change(count[0] - 1, a)

    def open_sdpa(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        return next_map((scores if attn_mask is None else scores + attn_mask).softmax(-1)) @ v

    def parts(attn, x, qkv):
        return qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def talking_heads(attn):
        def forward(x):
            q, k, v = parts(attn, x, attn.qkv)
            mixed = lambda layer, a: layer(a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # noqa: E731
            a = mixed(attn.proj_w, mixed(attn.proj_l, q * attn.scale @ k.mT).softmax(-1))
            return attn.proj((next_map(a) @ v).transpose(1, 2).flatten(2))

        return forward

    def mixed_by_theta(attn):
        def forward(x, *_, **__):
            q, k, v = parts(attn, x, attn.qkv)
            a = attn.var_norm(attn.reatten_matrix((q * attn.scale @ k.mT).softmax(-1)))
            return attn.proj((next_map(a) @ v * attn.output_scale).transpose(1, 2).flatten(2))

        return forward

    written = {"TalkingHeadAttn": talking_heads, "ReAttention": mixed_by_theta}
    before = F.scaled_dot_product_attention
    with contextlib.ExitStack() as held:
        for module in model.modules():
            if type(module).__name__ in written:
                held.enter_context(replaced(module, written[type(module).__name__](module)))
        F.scaled_dot_product_attention = open_sdpa
        try:
            yield
        finally:
            F.scaled_dot_product_attention = before


def passes_on(name):
    """A block's forward that gives its input; class attention (patches, class token) gives the class token."""
    return (lambda x, cls, *_, **__: cls) if "token_only" in name else (lambda x, *_, **__: x)


@pytest.mark.parametrize("name", [*MODELS])
@torch.no_grad()
def test_every_lesion_equals_the_network_changed_by_hand(name):
    make, places, prefix, side = MODELS[name]
    model = make()
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(3))
    rows, _ = probe(model, images[:1], None)
    assert [row.block for row in rows] == [block for block, _ in places]
    found = measure_lesions(model, rows, images)
    assert found.failed == ""
    # Later blocks take the first one's values: without it there is no such network.
    assert bool(found.refused) == (name == "cured")
    assert all("blocks.0" in reason for _, reason in found.refused)
    assert found.control < 1e-4

    def answers():
        out = model(images)
        return (out if isinstance(out, torch.Tensor) else out.logits).double().log_softmax(1)

    intact = answers()
    maps = {}
    with maps_changed(model, lambda n, a: maps.setdefault(n, a)):
        torch.testing.assert_close(answers(), intact, rtol=1e-4, atol=1e-5)  # the open form is the network
    assert len(maps) == len(places)
    checked = dict.fromkeys(KINDS, 0)

    def check(kind, number, context):
        if number not in found.single(kind):
            assert [kind] == [key for key, _ in found.refused if key == kind], (kind, number)
            assert number == 0
            return
        with context:
            lesioned = answers()
        kl = (intact.exp() * (intact - lesioned)).sum(1)
        effect = found.single(kind)[number]
        assert effect.value == pytest.approx(float(kl.mean()), rel=1e-5, abs=1e-7), (kind, number)
        assert effect.spread == pytest.approx(float(kl.std()), rel=1e-4, abs=1e-7), (kind, number)
        assert effect.changed == float((intact.argmax(1) != lesioned.argmax(1)).double().mean()), (
            kind,
            number,
        )
        checked[kind] += float(kl.mean()) > 1e-4

    def nothing(_module, _args, out):
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)

    def averaged(_module, _args, out):
        if out.ndim == 4:
            return out.mean((1, 2), keepdim=True).expand_as(out)
        return torch.cat(
            [out[:, :prefix], out[:, prefix:].mean(1, keepdim=True).expand_as(out[:, prefix:])], 1
        )

    @contextlib.contextmanager
    def hooked(path, hook):
        handle = model.get_submodule(path).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    patch_blocks = [number for number, (block, _) in enumerate(places) if "token_only" not in block]
    for number, (block, attention) in enumerate(places):
        whole = model.get_submodule(block)
        check("block", number, replaced(whole, passes_on(block)))
        check("attention", number, hooked(attention, nothing))
        if maps[number].shape[-2] > 1:
            mean = lambda n, a, own=number: a.mean(-2, keepdim=True).expand_as(a) if n == own else a  # noqa: E731
            check("map_mean", number, maps_changed(model, mean))
        # Of the maps that mean the same tokens: windows that are shifted alike; class attention has another question.
        cuts = [getattr(model.get_submodule(b), "shift_size", None) for b, _ in places]
        earlier = [
            n for n in range(number) if maps[n].shape == maps[number].shape and cuts[n] == cuts[number]
        ]
        if earlier and number in patch_blocks:
            reuse = lambda n, a, own=number, before=earlier[-1]: maps[before] if n == own else a  # noqa: E731
            check("map_reuse", number, maps_changed(model, reuse))
        else:
            assert number not in found.single("map_reuse")
        if number in patch_blocks:
            check("patch_mean", number, hooked(block, averaged))
        later = [
            other
            for n, (other, _) in enumerate(places)
            if n > number and (n in patch_blocks) == (number in patch_blocks)
        ]
        if later:
            with contextlib.ExitStack() as held:
                for other in later:
                    held.enter_context(replaced(model.get_submodule(other), passes_on(other)))
                check("exit", number, contextlib.nullcontext())
    assert all(count >= 2 for count in checked.values()), checked  # and each lesion did something
    expected = {"block": len(places), "attention": len(places), "patch_mean": len(patch_blocks)}
    refused = [kind for kind, _ in found.refused]
    assert {kind: len(found.single(kind)) + refused.count(kind) for kind in expected} == expected
