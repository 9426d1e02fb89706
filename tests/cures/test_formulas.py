"""Each cure computes its formula: against maps written out, or against timm's own model of the kind."""

from __future__ import annotations

from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from cures.small_vits import SMALL, stir
from timm.layers import Attention
from timm.models.cait import TalkingHeadAttn

from deepvit import cures
from deepvit.cures.layerscale import cait_value
from deepvit.cures.sigma_reparam import SigmaReparam

H, D = 4, 12


def parts(attn, x):
    """q, k, v [B, H, N, d] and the softmax maps of an attention module, from its own projections."""
    q, k, v = attn.qkv(x).reshape(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    return q, k, v, torch.softmax(q @ k.transpose(-2, -1) * D**-0.5, -1)


def close_up(attn, out):
    return attn.proj(out.transpose(1, 2).flatten(2))


def cured_block(make, cure, kind="plain", block=1, **options):
    model = cures.apply(make(kind), cure, **options)
    stir(model, "attn_scale"), stir(model, "centre"), stir(model, "neutreno"), stir(model, "mix_gate")
    stir(model, "reatten_matrix"), stir(model, "contra_norm"), stir(model, "proj_l"), stir(model, "proj_w")
    return model, model.blocks[block].attn


@pytest.fixture
def tokens():
    return torch.randn(2, 17, 48, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", ["plain", "qk_norm", "layerscale"])
def test_attnscale_equals_its_map_form(make, tokens, kind):
    _, attn = cured_block(make, "attnscale", kind)
    _, _, v, maps = parts(attn, tokens)
    uniform = torch.full_like(maps, 1 / maps.shape[-1])
    gain = attn.attn_scale.gain.view(1, H, 1, 1)
    expected = close_up(attn, (uniform + (1 + gain) * (maps - uniform)) @ v)
    torch.testing.assert_close(attn(tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_centred_attention_equals_its_map_form(make, tokens, init):
    _, attn = cured_block(make, "centred_attention", init=init)
    _, _, v, maps = parts(attn, tokens)
    gate = attn.centre.gate.view(1, H, 1, 1)
    expected = close_up(attn, (maps - gate / maps.shape[-1]) @ v)
    torch.testing.assert_close(attn(tokens), expected, rtol=0, atol=1e-5)
    if init == "paper":
        assert (attn.centre.gate == 1).all()
        torch.testing.assert_close(
            (maps - 1 / maps.shape[-1]).sum(-1), torch.zeros(2, H, 17), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_neutreno_equals_its_formula(make, tokens, init):
    model, attn = cured_block(make, "neutreno", init=init)
    other = torch.randn(2, 17, 48)
    first = parts(model.blocks[0].attn, other)[2]
    model.blocks[0].attn(other)
    _, _, v, maps = parts(attn, tokens)
    if init == "paper":
        assert attn.neutreno.strength == pytest.approx(0.6)
    model.blocks[0].attn(other)
    torch.testing.assert_close(
        attn(tokens), close_up(attn, maps @ v + attn.neutreno.strength * (first - v)), rtol=0, atol=1e-5
    )
    assert not hasattr(model.blocks[0].attn, "neutreno")


def test_value_residual_blends_the_first_blocks_values(make, images):
    model = cures.apply(make(), "value_residual", init="paper")
    seen = {}
    original = F.scaled_dot_product_attention

    def spy(q, k, v, **kwargs):
        seen.setdefault("v", []).append(v)
        return original(q, k, v, **kwargs)

    inputs = []
    handle = model.blocks[2].attn.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with mock.patch.object(F, "scaled_dot_product_attention", spy):
        model(images)
    handle.remove()
    attn = model.blocks[2].attn
    own = (
        F.linear(inputs[0], attn.qkv.weight, attn.qkv.bias).reshape(3, 17, 3, H, D).permute(2, 0, 3, 1, 4)[2]
    )
    torch.testing.assert_close(seen["v"][2], 0.5 * seen["v"][0] + 0.5 * own, rtol=0, atol=1e-5)


def test_featscale_equals_its_formula(make, tokens):
    model = cures.apply(make(), "featscale")
    block = model.blocks[1]
    plain = block(tokens)
    stir(model, "feat_scale")
    s, t = block.feat_scale.mean_gain, block.feat_scale.rest_gain
    mean = plain.mean(1, keepdim=True)
    torch.testing.assert_close(block(tokens), (1 + s) * mean + (1 + t) * (plain - mean), rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_contranorm_equals_its_formula(make, tokens, init):
    model = cures.apply(make(), "contranorm", init=init)
    attn = model.blocks[1].attn
    _, _, v, maps = parts(attn, tokens)
    x = close_up(attn, maps @ v)
    stir(model, "contra_norm")
    cosine = F.cosine_similarity(x[:, :, None], x[:, None], dim=-1)
    s = model.blocks[1].contra_norm.strength
    assert s == pytest.approx(0.1) if init == "paper" else s != 0
    torch.testing.assert_close(attn(tokens), x - s * cosine.softmax(-1) @ x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_gated_reattention_equals_its_map_form(make, tokens, training, rescale):
    _, attn = cured_block(make, "reattention", rescale=rescale)
    with torch.no_grad():
        attn.var_norm.running_mean.normal_(), attn.var_norm.running_var.uniform_(0.5, 2)
        attn.var_norm.weight.normal_(), attn.var_norm.bias.normal_()
    attn.train(training)
    _, _, v, maps = parts(attn, tokens)
    norm = attn.var_norm
    stats = (None, None) if training else (norm.running_mean.clone(), norm.running_var.clone())
    mixed = F.batch_norm(attn.reatten_matrix(maps), *stats, norm.weight, norm.bias, training, 0, norm.eps)
    y = maps + attn.mix_gate.view(1, H, 1, 1) * mixed * (D**-0.5 if rescale else 1)
    torch.testing.assert_close(attn.mix_maps(maps), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(attn(tokens), close_up(attn, y @ v), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["plain", "qk_norm"])
@pytest.mark.parametrize("init", ["identity", "paper"])
def test_twicing_equals_its_map_form(make, tokens, kind, init):
    model = cures.apply(make(kind), "twicing", init=init)
    stir(model, "strength")
    attn = model.blocks[1].attn
    _, _, v, maps = parts(attn, tokens)
    twice = maps + attn.strength.view(1, H, 1, 1) * (maps - maps @ maps)
    if init == "paper":
        torch.testing.assert_close(twice, 2 * maps - maps @ maps)
    torch.testing.assert_close(attn(tokens), close_up(attn, twice @ v), rtol=0, atol=1e-5)
    mask = torch.ones(2, 1, 17, 17, dtype=torch.bool).tril()
    q, k, _, _ = parts(attn, tokens)
    scores = q @ k.mT * D**-0.5
    masked = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    twice = masked + attn.strength.view(1, H, 1, 1) * (masked - masked @ masked)
    torch.testing.assert_close(attn(tokens, attn_mask=mask), close_up(attn, twice @ v), rtol=0, atol=1e-5)
    mask[:, :, 5] = False  # a query that may look at nothing
    fused = attn(tokens, attn_mask=mask)
    attn.fused_attn = False
    torch.testing.assert_close(attn(tokens, attn_mask=mask), fused, rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_gated_attention_equals_its_formula(make, tokens, init):
    model = cures.apply(make(), "gated_attention", init=init)
    stir(model, "output_gate")
    attn = model.blocks[1].attn
    _, _, v, maps = parts(attn, tokens)
    gate = (tokens @ attn.output_gate.weight.weight.T).sigmoid() * (2 if init == "identity" else 1)
    out = (maps @ v).transpose(1, 2).flatten(2) * gate
    expected = F.linear(out, attn.proj.weight, attn.proj.bias)
    torch.testing.assert_close(attn(tokens), expected, rtol=0, atol=1e-5)


def branches(block):
    """The two branches of a block, as functions of the stream."""
    return (lambda s: block.ls1(block.attn(block.norm1(s)))), (lambda s: block.ls2(block.mlp(block.norm2(s))))


@pytest.mark.parametrize("kind", ["plain", "layerscale"])
@pytest.mark.parametrize("init", ["identity", "paper"])
def test_orthogonal_residual_equals_its_formula(make, tokens, kind, init):
    model = cures.apply(make(kind), "orthogonal_residual", init=init)
    stir(model, "orthogonal")
    block = model.blocks[1]
    x = tokens
    for number, branch in enumerate(branches(block), 1):
        s = getattr(block, f"orthogonal{number}").strength
        f = branch(x)
        rows = zip(x.flatten(0, 1), f.flatten(0, 1), strict=True)
        along = torch.stack([torch.dot(a, b) / (a.square().sum() + 1e-6) for a, b in rows]).view(2, 17, 1)
        x = x + f - s * along * x
    torch.testing.assert_close(block(tokens), x, rtol=0, atol=1e-5)
    if init == "paper":
        first = block.ls1(block.attn(block.norm1(tokens)))
        turned = block.orthogonal1.combine(tokens, first, None)
        assert (turned * tokens).sum(-1).abs().max() < 1e-4  # nothing is left along the stream


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_mv_split_equals_its_formula(make, tokens, init):
    model = cures.apply(make(), "mv_split", init=init)
    if init == "paper":
        part = model.blocks[0].mean_split1
        assert (part.mean_gain == 0).all()
        torch.testing.assert_close(part.rest_gain, torch.full((48,), 0.03))
    stir(model, "mean_split")
    block = model.blocks[1]
    x = tokens
    for number, branch in enumerate(branches(block), 1):
        part = getattr(block, f"mean_split{number}")
        u = branch(x)
        mean, before = u.mean(1, keepdim=True), x.mean(1, keepdim=True)
        x = x + part.rest_gain * (u - mean) + part.mean_gain * (mean - part.pull * before)
    torch.testing.assert_close(block(tokens), x, rtol=0, atol=1e-5)


def test_depth_scaled_norm_equals_its_formula(make, tokens):
    plain, model = make(), cures.apply(make(), "depth_scaled_norm")
    for number in range(3):
        block, root = plain.blocks[number], (number + 1) ** 0.5
        x = tokens + block.attn(block.norm1(tokens) / root)
        x = x + block.mlp(block.norm2(x) / root)
        torch.testing.assert_close(model.blocks[number](tokens), x, rtol=0, atol=1e-5)


def test_cures_of_the_residual_sum_know_deepvits_scaled_blocks(images):
    import deepvit  # noqa: F401  registers the names

    model = timm.create_model(
        "deepvit_s_patch16_224", **SMALL, reattention_blocks="none", stem="linear", residual_scale=0.5
    ).eval()
    cures.apply(model, "orthogonal_residual", init="paper")
    block, tokens = model.blocks[1], torch.randn(2, 17, 48)
    f = block.attn(block.norm1(0.5 * tokens)) / 0.5
    x = tokens + f - (tokens * f).sum(-1, keepdim=True) / tokens.square().sum(-1, keepdim=True) * tokens
    f = block.mlp(block.norm2(0.5 * x)) / 0.5
    x = x + f - (x * f).sum(-1, keepdim=True) / x.square().sum(-1, keepdim=True) * x
    torch.testing.assert_close(block(tokens), x, rtol=0, atol=1e-4)


def test_gated_reattention_learns_its_gate_from_zero(make, images):
    model = cures.apply(make(), "reattention").train()
    model(images).square().sum().backward()
    assert model.blocks[1].attn.mix_gate.grad.abs().min() > 0


def test_reattention_paper_start_is_the_published_layer(make):
    from deepvit.layers import ReAttention

    model = cures.apply(make(), "reattention", blocks="last:1", init="paper")
    attn = model.blocks[2].attn
    assert type(attn) is ReAttention
    assert type(model.blocks[1].attn) is Attention
    assert attn.reatten_matrix.weight.abs().max() <= H**-0.5
    assert (attn.reatten_matrix.weight.flatten(1) != torch.eye(H)).all()
    same = cures.apply(make(), "reattention", blocks="last:1", init="official")
    assert same.deepvit_cures == model.deepvit_cures


def test_talking_heads_is_timms_layer(make, tokens):
    _, attn = cured_block(make, "talking_heads")
    torch.testing.assert_close(attn(tokens), TalkingHeadAttn.forward(attn, tokens), rtol=0, atol=1e-5)


def test_sigma_reparam_keeps_the_spectral_norm(make):
    model = cures.apply(make(), "sigma_reparam", init="paper")
    for layer in (model.blocks[0].attn.qkv, model.blocks[2].mlp.fc2):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-4)
    model.train()
    with torch.no_grad():
        model.blocks[0].attn.qkv.parametrizations.weight.original.add_(0.2 * torch.randn(144, 48))
        for _ in range(200):
            weight = model.blocks[0].attn.qkv.weight
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, abs=1e-2)  # the iteration follows
    attention = cures.apply(make(), "sigma_reparam", where="attention")
    assert not hasattr(attention.blocks[0].mlp.fc1, "parametrizations")
    assert hasattr(attention.blocks[0].attn.proj, "parametrizations")


def test_sigma_reparam_of_a_zero_weight_is_zero():
    part = SigmaReparam(torch.zeros(4, 3), identity=True)
    weight = torch.zeros(4, 3, requires_grad=True)
    out = part(weight)
    out.sum().backward()
    assert (out == 0).all()
    assert weight.grad.isfinite().all()


TWINS = {
    "layerscale": {"init_values": 1.0},
    "qk_norm": {"qk_norm": True},
    "registers": {"reg_tokens": 4},
    "differential_attention": {"attn_layer": "diff"},
}


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize("cure", TWINS)
def test_equals_timms_own_model_of_the_kind(make, images, cure, no_embed_class):
    model = cures.apply(make(no_embed_class=no_embed_class), cure)
    twin = timm.create_model("vit_small_patch16_224", **SMALL, **TWINS[cure], no_embed_class=no_embed_class)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), twin.eval()(images))
    assert model.num_prefix_tokens == twin.num_prefix_tokens
    resized = [m.forward_intermediates(images, intermediates_only=True)[-1] for m in (model, twin)]
    torch.testing.assert_close(*resized)


def test_registers_leave_the_class_token_and_the_patches_their_places(make):
    model = make()
    table = model.pos_embed.detach().clone()
    grown = cures.apply(model, "registers", count=3).pos_embed
    assert torch.equal(grown[:, :1], table[:, :1])
    assert torch.equal(grown[:, 1:4], torch.zeros(1, 3, 48))
    assert torch.equal(grown[:, 4:], table[:, 1:])


def test_layerscale_paper_start_follows_the_depth(make):
    assert [cait_value(d) for d in (12, 18, 24, 36)] == [0.1, 0.1, 1e-5, 1e-6]
    assert cures.apply(make(), "layerscale", init="paper").blocks[0].ls1.gamma[0].item() == pytest.approx(0.1)
    assert cures.apply(make(), "layerscale", value=0.5).blocks[2].ls2.gamma[0] == 0.5


FUSED = [
    name
    for name, cure in cures.CURES.items()
    if not (cure.needs_maps or cure.removes or cure.needs_options) and name != "differential_attention"
]


@pytest.mark.parametrize("cure", FUSED)
def test_fused_attention_is_kept(make, images, cure):
    model = cures.apply(make(), cure)
    with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as fused:
        model(images)
    assert fused.call_count == (6 if cure == "twicing" else 3)
    # And without it (timm's TIMM_FUSED_ATTN=0) the map form gives the same.
    expected = model(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)


def test_the_first_values_are_this_passes(make, images):
    model = cures.apply(make(), "neutreno", init="paper")
    alone = model(images[:1])
    model(images)
    torch.testing.assert_close(model(images[:1]), alone)
