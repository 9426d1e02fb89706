"""Patch tokens of other families: the right ones, or a refusal in one line; never a class token or one too few."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch

from deepvit.errors import UserError
from deepvit.losses import LOSSES, Diversity, attention_cosine, patch_contrastive, patch_cosine, patch_mixing

SMALL = {"num_classes": 5, "img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4, "depth": 3}
MODELS = {
    "cait": ("cait_xxs24_224", SMALL, 32),
    "xcit": ("xcit_nano_12_p8_224", {**SMALL, "patch_size": 8}, 32),
    "twins": ("twins_svt_small", {"num_classes": 5, "img_size": 64, "depths": (1, 1, 1, 2)}, 64),
    "sam": ("samvit_base_patch16", {**SMALL, "img_size": 64, "patch_size": 16}, 64),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL, 32),
    "beit": ("beit_base_patch16_224", SMALL, 32),
    "relpos": ("vit_relpos_small_patch16_224", SMALL, 32),
    "convit": ("convit_tiny", SMALL, 32),
    "crossvit": ("crossvit_9_240", {"num_classes": 5}, 240),
    "tnt": ("tnt_s_patch16_224", {"num_classes": 5, "depth": 2}, 224),
}
# Blocks, whether a norm over tokens is found, patches, class and register tokens in blocks and after the norm.
TOKENS = {
    "cait": (("blocks.0", "blocks.2"), True, 16, 0, 1),
    "xcit": (("blocks.0", "blocks.2"), True, 16, 0, 1),
    "twins": (("blocks.3.0", "blocks.3.1"), True, 4, 0, 0),
    "sam": (("blocks.0", "blocks.2"), False, 16, 0, 0),
    "distilled": (("blocks.0", "blocks.2"), True, 16, 2, 2),
    "beit": (("blocks.0", "blocks.2"), False, 16, 1, 1),
    "relpos": (("blocks.0", "blocks.2"), False, 16, 0, 0),
}


def build(family):
    name, options, size = MODELS[family]
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval(), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("family", TOKENS)
def test_the_patch_tokens_of_a_family(family):
    model, images = build(family)
    (first, last), normed, patches, in_blocks, in_norm = TOKENS[family]
    kept = {}
    for name in (first, last, *(["norm"] if normed else [])):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, n=name: kept.update({n: out}))
    div = Diversity(model, {"patch_cosine": 1, "patch_contrastive": 1, "patch_mixing": 1})
    with div.watch():
        model(images)
    terms = div.terms(torch.tensor([0, 1]))
    flat = {name: tokens.flatten(1, -2) for name, tokens in kept.items()}
    assert flat[last].shape[1] == patches + in_blocks
    h1, hl = flat[first][:, in_blocks:], flat[last][:, in_blocks:]
    torch.testing.assert_close(terms["patch_cosine"], patch_cosine(hl))
    torch.testing.assert_close(terms["patch_contrastive"], patch_contrastive(h1, hl))
    read = flat["norm"][:, in_norm:] if normed else hl
    assert read.shape[1] == patches
    labels = torch.tensor([0, 1])[:, None].expand(2, patches)
    torch.testing.assert_close(terms["patch_mixing"], patch_mixing(div.head.linear(read), labels))


@pytest.mark.parametrize(
    ("family", "loss", "words"),
    [
        ("crossvit", "patch_cosine", r"blocks.2 \(MultiScaleBlock\) returns a list, not one tensor"),
        ("tnt", "patch_cosine", r"blocks.1 \(Block\) returns a tuple, not one tensor of tokens"),
        (
            "convit",
            "patch_cosine",
            "ConVit: blocks.2 gives 16 tokens for 16 patches, which is not the 1 class",
        ),
        (
            "relpos",
            "attention_cosine",
            r"cannot read blocks.0.attn \(RelPosAttention\): positions enter after",
        ),
        ("sam", "attention_cosine", r"cannot read blocks.0.attn \(Attention\): positions enter after"),
        ("twins", "attention_cosine", "it has no q_norm, k_norm and scale"),
        ("cait", "attention_cosine", "cannot read blocks.0.attn"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(family, loss, words):
    model, images = build(family)

    def ask():
        div = Diversity(model, {loss: 1.0})
        with div.watch():
            model(images)
        div.terms()

    with pytest.raises(UserError, match=words) as error:
        ask()
    assert "\n" not in str(error.value)


def test_a_padding_mask_is_refused():
    torch.manual_seed(0)
    model = timm.create_model(
        "naflexvit_base_patch16_gap", **{**SMALL, "patch_size": 4, "img_size": 16}
    ).eval()
    valid = torch.ones(2, 16, dtype=torch.bool)
    given = {
        "patches": torch.randn(2, 16, 48),
        "patch_coord": torch.zeros(2, 16, 2, dtype=torch.long),
        "patch_valid": valid,
    }
    for loss in ("patch_cosine", "patch_mixing", "attention_cosine"):
        div = Diversity(model, {loss: 1.0})
        with (
            pytest.raises(UserError, match=r"count the padding as patches: blocks.2 was given a mask"),
            div.watch(),
        ):
            model(given)
        div.remove()


def vit(**options):
    torch.manual_seed(0)
    return timm.create_model("vit_small_patch16_224", **SMALL, **options)


def test_official_forms_take_what_the_official_codes_take():
    """The contrastive loss tokens after the final norm; DeepViT's cosine every token, over heads, of maps as they are."""
    model, images = vit().eval(), torch.randn(3, 3, 32, 32)
    div = Diversity(
        model, {"patch_contrastive": 1, "attention_cosine": 1}, attention_images=1.0,
        forms={"patch_contrastive": "official", "attention_cosine": "official"},
    )  # fmt: skip
    with div.watch():
        model(images)
    terms = div.terms()
    embed = model.patch_embed(images)
    tokens, maps = model._pos_embed(embed), []
    for block in model.blocks:
        attn = block.attn
        q, k, _ = attn.qkv(block.norm1(tokens)).reshape(3, 17, 3, 4, 12).permute(2, 0, 3, 1, 4)
        maps.append((q @ k.transpose(-2, -1) * attn.scale).softmax(-1))
        tokens = block(tokens)
    normed = model.norm(tokens)[:, 1:]

    rows = []  # three scores a patch; the neighbourhood's sum over 48, whatever lies outside the image
    for f, h in zip(embed.detach(), normed, strict=True):
        for i in range(16):
            y, x = divmod(i, 4)
            near = [
                h[4 * r + s]
                for r in range(4)
                for s in range(4)
                if abs(r - y) <= 3 and abs(s - x) <= 3 and (r, s) != (y, x)
            ]
            others = torch.cat((h[:i], h[i + 1 :])).mean(0)
            scores = torch.stack((f[i] @ h[i], f[i] @ others, f[i] @ torch.stack(near).sum(0) / 48))
            rows.append(-scores.log_softmax(0)[0])
    torch.testing.assert_close(terms["patch_contrastive"], torch.stack(rows).mean())

    official = torch.nn.CosineSimilarity(dim=1)  # as the official code takes it, over heads
    pairs = torch.stack([official(a, b) for a, b in pairwise(maps)])
    torch.testing.assert_close(terms["attention_cosine"], pairs.mean())
    assert not torch.isclose(
        terms["attention_cosine"], attention_cosine(maps, "official", prefix_tokens=1), rtol=1e-6
    )


def test_forms_say_where_their_tokens_come_from():
    assert LOSSES["patch_contrastive"].forms["official"] == {"embed", "normed"}
    assert LOSSES["patch_cosine"].forms["paper"] == {"last"}


def test_blocks_compiled_one_by_one_are_watched_in_the_right_places():
    torch._dynamo.reset()
    model, images = vit().eval(), torch.randn(2, 3, 32, 32)
    expected = {}
    for compiled in (False, True):
        div = Diversity(model, {"patch_cosine": 1.0, "patch_contrastive": 1.0})
        if compiled:
            for block in model.blocks:
                block.compile(backend="eager")
        with div.watch():
            model(images)
        terms = div.terms()
        div.remove()
        expected = expected or terms
    torch.testing.assert_close(terms, expected)
    torch._dynamo.reset()
