"""Every cure on every kind of model: identity, gradients, compile, copy, save and load."""

from __future__ import annotations

import copy
import io
import json

import pytest
import timm
import torch
from cures.small_vits import KINDS, SMALL, stir
from timm.optim import param_groups_layer_decay

from deepvit import cures
from deepvit.errors import UserError
from deepvit.losses import Diversity, attention_cosine

HAS_IT_ALREADY = {
    ("registers", "registers"),
    ("registers", "layerscale"),
    ("layerscale", "layerscale"),
    ("qk_norm", "qk_norm"),
}
CANNOT = HAS_IT_ALREADY | {("qk_norm", "differential_attention")}
# A cure that removes blocks cannot take all of them, one that needs options has none here: both have tests of their own.
KEEPING = [name for name, cure in cures.CURES.items() if not (cure.removes or cure.needs_options)]
PAIRS = [(kind, cure) for kind in KINDS for cure in KEEPING]
POSSIBLE = [pair for pair in PAIRS if pair not in CANNOT]


@pytest.mark.parametrize(("kind", "cure"), sorted(CANNOT))
def test_refused_where_it_is_there_already_or_cannot_be(make, kind, cure):
    model = make(kind)
    keys = list(model.state_dict())
    with pytest.raises(UserError, match=r"already|halve") as error:
        cures.apply(model, cure)
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == keys
    assert not hasattr(model, "deepvit_cures")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("kind", "cure"), POSSIBLE)
def test_identity_at_start_as_the_registry_says(make, images, kind, cure, training):
    model = make(kind).train(training)
    before = model(images)
    cures.apply(model, cure)
    distance = (model(images) - before).abs().max().item()
    if cures.CURES[cure].identity_at_start:
        assert distance <= 1e-5
    else:
        assert distance > 1e-4


@pytest.mark.parametrize("init", ["identity", "paper"])
@pytest.mark.parametrize(("kind", "cure"), POSSIBLE)
def test_trains_copies_saves_and_loads(make, images, kind, cure, init):
    model = make(kind)
    if init == "identity" and not cures.CURES[cure].identity_at_start:
        with pytest.raises(UserError, match=f"{cure} cannot start as the identity"):
            cures.apply(model, cure, init=init)
        return
    cures.apply(model, cure, init=init)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    model(images).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []  # DistributedDataParallel stops at parameters that get no gradient
    optimizer.step()
    model.eval()
    expected = model(images)
    torch.testing.assert_close(copy.deepcopy(model)(images), expected)

    name, extra = KINDS[kind]
    fresh = timm.create_model(name, **SMALL, **extra)
    cures.reapply(fresh, json.loads(json.dumps(model.deepvit_cures)))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.deepvit_cures == model.deepvit_cures
    torch.testing.assert_close(fresh.eval()(images), expected, rtol=0, atol=0)


TOGETHER = [
    "reattention+neutreno+layerscale",
    "talking_heads+value_residual+qk_norm",
    "differential_attention+featscale",
    "attnscale+contranorm+sigma_reparam+registers",
    "centred_attention",
    "twicing+gated_attention+orthogonal_residual+depth_scaled_norm",
    "value_residual+mv_split",
]


def test_the_compiled_sets_hold_every_cure():
    assert {wanted.name for names in TOGETHER for wanted in cures.parse(names)} == set(KEEPING)


@pytest.mark.parametrize("names", TOGETHER)
def test_compiles_in_one_graph(make, images, names):
    torch._dynamo.reset()
    model = cures.apply(make(), names)
    stir(model, "attn.")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    torch._dynamo.reset()


def test_compiled_training_step(make, images):
    torch._dynamo.reset()
    grads = []
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="aot_eager")):
        model = cures.apply(
            make(), "value_residual+attnscale+contranorm+sigma_reparam+featscale", init="paper"
        ).train()
        wrap(model)(images).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("cure", ["attnscale", "neutreno", "value_residual", "reattention", "contranorm"])
def test_gradient_checkpointing(make, images, cure):
    grads = []
    for checkpointing in (False, True):
        model = cures.apply(make(), cure, init="paper")
        stir(model, "attn_scale")
        torch.manual_seed(0)
        model.set_grad_checkpointing(checkpointing)
        model(images).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("cure", KEEPING)
def test_layer_decay_finds_every_new_parameter_in_its_block(make, cure):
    model = make()
    old = {name for name, _ in model.named_parameters()}
    cures.apply(model, cure)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    grouped = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if name not in old and name.startswith("blocks."):
            sibling = model.get_parameter(f"blocks.{name.split('.')[1]}.norm1.weight")
            assert grouped[id(parameter)] == grouped[id(sibling)], name
    assert len(grouped) == len(list(model.parameters()))


@pytest.mark.parametrize("cure", KEEPING)
def test_bfloat16_autocast(make, images, cure):
    model = cures.apply(make(), cure, init="paper").train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images)
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_everything_that_goes_together(make, images):
    model = make()
    before = model(images)
    names = "attnscale,featscale,neutreno,contranorm,sigma_reparam,layerscale"
    cures.apply(model, names)
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-5)
    assert {r["name"] for r in model.deepvit_cures} == set(names.split(","))
    cures.apply(model, "qk_norm+registers", blocks="last:1")
    assert [r["blocks"] for r in model.deepvit_cures[-2:]] == [[2], []]
    model(images).sum().backward()


def test_half_precision_and_device_of_the_model_are_kept(make):
    for cure in KEEPING:
        model = cures.apply(make().bfloat16(), cure)
        odd = {n for n, t in model.state_dict().items() if t.dtype == torch.float32}
        # Singular vectors, and timm's λ, are float32 on purpose.
        assert all("parametrizations" in n or ".lambda_" in n for n in odd), (cure, odd)


def test_deepvits_own_models_take_cures_too(images):
    import deepvit  # noqa: F401  registers the names

    options = {**SMALL, "embed_dim": 48, "num_heads": 4}
    model = timm.create_model(
        "deepvit_s_patch16_224", **options, reattention_blocks="last:1", stem="linear"
    ).eval()
    before = model(images)
    cures.apply(model, "neutreno+layerscale")
    torch.testing.assert_close(model(images), before, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"blocks.2.attn is ReAttention, which cannot take attnscale"):
        cures.apply(model, "attnscale")


def test_attention_losses_read_gated_reattention_and_refuse_what_they_cannot(make, images):
    model = cures.apply(make(), "reattention")
    stir(model, "mix_gate")
    div = Diversity(model, {"attention_cosine": 1.0}, attention_blocks=[1, 2], attention_images=1.0)
    maps = []
    for number in (1, 2):
        attn = model.blocks[number].attn
        q_k = []
        attn.q_norm.register_forward_hook(lambda _m, _i, out, kept=q_k: kept.append(out))
        attn.k_norm.register_forward_hook(lambda _m, _i, out, kept=q_k: kept.append(out))
        maps.append((attn, q_k))
    with div.watch():
        model(images)
    value = div.terms()["attention_cosine"]
    mixed = [attn.mix_maps(torch.softmax(q * attn.scale @ k.transpose(-2, -1), -1)) for attn, (q, k) in maps]
    torch.testing.assert_close(value, attention_cosine(mixed, prefix_tokens=1))
    value.backward()
    assert model.blocks[1].attn.mix_gate.grad.abs().sum() > 0
    for cure, why in (
        ("talking_heads", "mixes heads before"),
        ("differential_attention", "difference of two"),
    ):
        with pytest.raises(UserError, match=f"attention_cosine cannot read blocks.0.attn .*{why}"):
            Diversity(cures.apply(make(), cure), {"attention_cosine": 1.0})
