"""``Diversity`` on real timm models: takes the right tokens, by hooks that leave no trace."""

from __future__ import annotations

import copy
import itertools

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

from deepvit.errors import UserError
from deepvit.losses import (
    Diversity,
    PatchMix,
    attention_cosine,
    patch_contrastive,
    patch_cosine,
    patch_mixing,
)

ALL = {"patch_cosine": 1.0, "patch_contrastive": 0.5, "patch_mixing": 2.0, "attention_cosine": 0.1}
SMALL = {"img_size": 32, "num_classes": 5}


def vit(name="vit_small_patch16_224", **kwargs):
    torch.manual_seed(0)
    options = {"embed_dim": 24, "num_heads": 3, "depth": 3, "patch_size": 8, **SMALL, **kwargs}
    return timm.create_model(name, **options)


@pytest.fixture(scope="module")
def model():
    return vit().eval()


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(1)
    return PatchMix(8, 5)(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))


def by_hand(model, x):
    """First, last and normed last tokens and patch embedding, computed block by block."""
    embed = model.patch_embed(x)
    h = model.norm_pre(model.patch_drop(model._pos_embed(embed)))
    outs = []
    for block in model.blocks:
        h = block(h)
        outs.append(h)
    p = model.num_prefix_tokens
    return outs[0][:, p:], outs[-1][:, p:], model.norm(outs[-1])[:, p:], embed


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_224",
        "vit_little_patch16_reg4_gap_256",
        "deit3_small_patch16_224",
        "deit_tiny_distilled_patch16_224",
    ],
)
def test_terms_are_the_pure_functions_of_the_right_tokens(name, batch):
    model = vit(name).eval()
    div = Diversity(model, ALL, attention_images=1.0)
    with div.watch():
        logits = model(batch.images)
    assert torch.equal(logits, model(batch.images))
    terms = div.terms(batch.patches)
    first, last, normed, _ = by_hand(model, batch.images)
    torch.testing.assert_close(terms["patch_cosine"], patch_cosine(last))
    torch.testing.assert_close(terms["patch_contrastive"], patch_contrastive(first, last))
    torch.testing.assert_close(terms["patch_mixing"], patch_mixing(div.head.linear(normed), batch.patches))
    assert list(terms) == list(ALL)
    expected = sum(ALL[k] * v for k, v in terms.items())
    torch.testing.assert_close(div.total(terms), expected)


def test_attention_term_is_of_the_models_own_maps(model, batch):
    div = Diversity(model, {"attention_cosine": 1.0}, attention_blocks=[1, 2], attention_images=1.0)
    with div.watch():
        model(batch.images)
    maps = []
    x = model._pos_embed(model.patch_embed(batch.images))
    for i, block in enumerate(model.blocks):
        attn, b = block.attn, len(x)
        q, k, _ = attn.qkv(block.norm1(x)).reshape(b, -1, 3, 3, 8).permute(2, 0, 3, 1, 4)
        if i in (1, 2):
            maps.append(torch.softmax(q @ k.transpose(-2, -1) * attn.scale, -1))
        x = block(x)
    torch.testing.assert_close(div.terms()["attention_cosine"], attention_cosine(maps, prefix_tokens=1))


def test_a_share_of_the_images(model, batch):
    torch.manual_seed(0)
    div = Diversity(model, {"attention_cosine": 1.0}, attention_images=0.5)
    values = set()
    for _ in range(12):
        with div.watch():
            model(batch.images)
        values.add(round(div.terms()["attention_cosine"].item(), 6))
    assert 1 < len(values) <= 6  # pairs of four images


def test_forms_choose_the_tokens(model, batch):
    div = Diversity(
        model,
        {"patch_cosine": 1.0, "patch_contrastive": 1.0, "patch_mixing": 1.0},
        forms={"patch_cosine": "diverse_vit", "patch_contrastive": "official", "patch_mixing": "official"},
        tokens="norm",
    ).eval()
    with div.watch():
        model(batch.images)
    terms = div.terms(batch.patches)
    _, _, normed, embed = by_hand(model, batch.images)
    torch.testing.assert_close(terms["patch_cosine"], patch_cosine(normed, "diverse_vit"))
    torch.testing.assert_close(
        terms["patch_contrastive"], patch_contrastive(embed, normed, "official", grid=(4, 4))
    )
    torch.testing.assert_close(terms["patch_mixing"], div.head(normed, batch.patches))


def test_gradients_reach_the_network_and_the_head(batch):
    model = vit()
    div = Diversity(model, ALL)
    with div.watch():
        loss = model(batch.images).sum() * 0
    (loss + div.total(div.terms(batch.patches))).backward()
    for name in ("blocks.0.mlp.fc1.weight", "blocks.2.attn.qkv.weight", "patch_embed.proj.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0
    assert div.head.linear.weight.grad.abs().sum() > 0


def hooks(model):
    return sum(len(m._forward_hooks) for m in model.modules())


def test_the_record_lasts_as_long_as_it_is_needed(model, batch):
    last = by_hand(model, batch.images)[1]
    div = Diversity(model, ALL)
    model(batch.images)
    assert div._taken is None
    with div.watch():
        model(batch.images)
    model(2 * batch.images)  # unwatched: must not replace what was watched
    torch.testing.assert_close(div.terms(batch.patches)["patch_cosine"], patch_cosine(last))
    assert div._taken is None
    div.remove()


def test_hooks_can_be_removed_and_the_state_dict_holds_the_head_alone(model):
    before, keys = hooks(model), set(model.state_dict())
    div = Diversity(model, ALL)
    assert hooks(model) == before + 3 + 2 * 3
    assert set(model.state_dict()) == keys
    assert set(div.state_dict()) == {"head.linear.weight", "head.linear.bias"}
    assert {id(p) for p in div.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    div.remove()
    assert hooks(model) == before


def test_copies_of_the_model_hold_no_batch(batch):
    model = vit()
    div = Diversity(model, ALL)
    with div.watch():
        model(batch.images)
        twin = copy.deepcopy(model)  # as an EMA would, in the middle of a step: tokens are not leaves
    twin(2 * batch.images)
    last = by_hand(model, batch.images)[1]
    torch.testing.assert_close(div.terms(batch.patches)["patch_cosine"], patch_cosine(last))
    both = copy.deepcopy(nn.ModuleList([model, div]))
    with both[1].watch():
        both[0](batch.images)
    assert both[1].terms(batch.patches).keys() == ALL.keys()


def test_plain_labels_give_each_patch_its_images(model, batch):
    div = Diversity(model, {"patch_mixing": 1.0})
    labels = torch.tensor([0, 1, 2, 3])
    with div.watch():
        model(batch.images)
    value = div.terms(labels)["patch_mixing"]
    _, _, normed, _ = by_hand(model, batch.images)
    expected = patch_mixing(div.head.linear(normed), labels[:, None].expand(4, 16))
    torch.testing.assert_close(value, expected)


def test_swin_has_grids_and_no_class_token():
    torch.manual_seed(0)
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=12,
        depths=(1, 2),
        num_heads=(2, 2),
        num_classes=5,
    )
    mixed = PatchMix(8, 5)(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    div = Diversity(model, {"patch_cosine": 1, "patch_contrastive": 1, "patch_mixing": 1})
    assert div.places.blocks == ("layers.1.blocks.0", "layers.1.blocks.1")
    with div.watch():
        model(mixed.images)
    last = div._taken.outputs["layers.1.blocks.1"]
    assert last.shape == (2, 8, 8, 24)
    terms = div.terms(mixed.patches)
    torch.testing.assert_close(terms["patch_cosine"], patch_cosine(last))
    div.total(terms).backward()
    assert model.patch_embed.proj.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match=r"cannot read layers.1.blocks.0.attn \(WindowAttention\)"):
        Diversity(model, {"attention_cosine": 1})
    div = Diversity(model, {"patch_contrastive": 1}, forms={"patch_contrastive": "official"})
    with div.watch():
        model(mixed.images)
    with pytest.raises(UserError, match="take both from blocks of one stage"):
        div.terms()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_terms_are_float32(model, batch, dtype):
    div = Diversity(model, ALL)
    with torch.autocast("cpu", dtype=dtype):
        with div.watch():
            model(batch.images)
        terms = div.terms(batch.patches)
    assert {t.dtype for t in terms.values()} == {torch.float32}
    assert all(t.isfinite() for t in terms.values())


def test_a_model_in_bfloat16_throughout(batch):
    model = vit().bfloat16()
    div = Diversity(model, ALL)
    with div.watch():
        model(batch.images.bfloat16())
    total = div.total(div.terms(batch.patches))
    total.backward()
    assert total.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in [*model.blocks.parameters(), *div.parameters()])


def test_gradient_checkpointing_keeps_the_gradients(batch):
    grads = []
    for checkpointing in (False, True):
        model = vit()
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        div = Diversity(model, ALL, attention_images=1.0)
        with div.watch():
            model(batch.images)
        div.total(div.terms(batch.patches)).backward()
        grads.append(model.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_under_distributed_data_parallel(batch, tmp_path):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = vit()
            self.div = Diversity(self.model, ALL)

        def forward(self, images, patches):
            with self.div.watch():
                logits = self.model(images)
            return logits.mean() + self.div.total(self.div.terms(patches))

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        both = nn.parallel.DistributedDataParallel(Both())
        for _ in range(2):  # the second step stops when a parameter got no gradient in the first
            both(batch.images, batch.patches).backward()
        assert both.module.div.head.linear.weight.grad.abs().sum() > 0
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_are_watched_too(batch, backend):
    torch._dynamo.reset()
    model = vit().eval()
    div = Diversity(model, ALL, attention_images=1.0)
    with div.watch():
        model(batch.images)
    expected = div.terms(batch.patches)
    compiled = torch.compile(model, backend="eager")
    unwatched = compiled(
        batch.images
    )  # compiled first without hooks: watching must not be skipped afterwards
    inside = Diversity(compiled, ALL, attention_images=1.0)
    inside.load_state_dict(div.state_dict())
    for watched, _ in itertools.product((True, False), range(2)):
        if not watched:
            torch.testing.assert_close(compiled(batch.images), unwatched)
            assert inside._taken is None
            continue
        with inside.watch():
            torch.testing.assert_close(compiled(batch.images), unwatched)
        terms = inside.terms(batch.patches)
        torch.testing.assert_close(terms, expected)
    torch._dynamo.reset()


def test_a_model_of_ones_own_by_names():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    div = Diversity(model, {"patch_cosine": 1, "patch_contrastive": 1}, first="0", last="2")
    with div.watch():
        out = model(torch.randn(2, 9, 4))
    torch.testing.assert_close(div.terms()["patch_cosine"], patch_cosine(out))


def test_weight_zero_is_off(model):
    div = Diversity(model, {"patch_cosine": 1.0, "patch_mixing": 0.0})
    assert div.head is None
    assert div.weights == {"patch_cosine": 1.0}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: Diversity(m, {"patch_cosine": -1}), "weight of patch_cosine is -1"),
        (lambda m: Diversity(m, {"patch_cosine": float("nan")}), "weight of patch_cosine is nan"),
        (lambda m: Diversity(m, {"cosine": 1}), "no diversity loss 'cosine'; choose from patch_cosine"),
        (lambda m: Diversity(m, forms={"patch_cosine": "x"}), "patch_cosine has no form 'x'"),
        (lambda m: Diversity(m, forms={"x": "x"}), "no diversity loss 'x'"),
        (lambda m: Diversity(m, tokens="x"), "tokens='x'"),
        (lambda m: Diversity(m, attention_images=0), "attention_images=0"),
        (lambda m: Diversity(m, {"attention_cosine": 1}, attention_blocks=[2, 3]), "no block 3 in 3 blocks"),
        (lambda m: Diversity(m, {"attention_cosine": 1}, attention_blocks=[2]), r"was given \[2\]"),
        (lambda m: Diversity(m, first="nope"), "has no module 'nope'"),
        (lambda m: Diversity(m).terms(), "no forward pass was watched"),
        (lambda m: Diversity(timm.create_model("resnet10t", num_classes=5)), "ResNet has no patch tokens"),
        (lambda m: Diversity(timm.create_model("test_efficientnet")), "EfficientNet has no patch tokens"),
        (lambda m: Diversity(vit(num_classes=0)), "num_classes=0"),
    ],
)
def test_mistakes_are_one_clear_line(model, call, words):
    with pytest.raises(UserError, match=words) as error:
        call(model)
    assert "\n" not in str(error.value)


def test_missing_labels_and_wrong_grids(model, batch):
    div = Diversity(model, {"patch_mixing": 1.0})
    with div.watch():
        model(batch.images)
    with pytest.raises(UserError, match="patch_mixing needs labels"):
        div.terms()
    with div.watch():
        model(batch.images)
    with pytest.raises(UserError, match="2×2 patches but the network has 16 patch tokens"):
        div.terms(PatchMix(16, 5)(batch.images, torch.tensor([0, 1, 2, 3])).patches)
