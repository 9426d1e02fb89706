"""docs/differences.md: with every stated difference taken away, vit-pytorch's DeepViT and ours are one network."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from vit_pytorch.deepvit import DeepViT

import deepvit.models  # registers the names
from deepvit.layers import ReAttention

HEADS, WIDTH, DEPTH = 4, 48, 3
DIFFERENCES = {"transposed", "theta_bias", "norm", "qkv_bias", "embedding", "eps", "pooling"}


def theirs(pool="mean"):
    torch.manual_seed(0)
    return DeepViT(
        image_size=32, patch_size=8, num_classes=5, dim=WIDTH, depth=DEPTH, heads=HEADS, mlp_dim=3 * WIDTH,
        dim_head=WIDTH // HEADS, pool=pool,
    ).double()  # fmt: skip


class TheirAttention(nn.Module):
    """Our layer's parameters in their arithmetic, but for the differences that are ``left``."""

    def __init__(self, layer, left):
        super().__init__()
        self.layer, self.left, self.across = layer, left, nn.LayerNorm(HEADS).double()

    def forward(self, x, attn_mask=None, is_causal=False):
        layer, (batch, tokens, _) = self.layer, x.shape
        q, k, v = layer.qkv(x).view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        maps = (q @ k.mT * layer.scale).softmax(-1)
        theta, bias = layer.reatten_matrix.weight[:, :, 0, 0], layer.reatten_matrix.bias
        mixed = torch.einsum("hg,bgmn->bhmn", theta if "transposed" in self.left else theta.T, maps)
        if "theta_bias" in self.left:
            mixed = mixed + bias.view(-1, 1, 1)
        if "norm" in self.left:
            mixed = layer.var_norm(mixed)
        else:
            mixed = self.across(mixed.movedim(1, -1)).movedim(-1, 1)
        return layer.proj((mixed @ v).transpose(1, 2).flatten(2))


def ours(other, left):
    """Our network with their weights; the differences in ``left`` stay."""
    model = timm.create_model(
        "deepvit_d16_patch16_224", img_size=32, patch_size=8, num_classes=5, embed_dim=WIDTH, depth=DEPTH,
        num_heads=HEADS, qkv_bias=True,
    ).double()  # fmt: skip
    with torch.no_grad():
        model.cls_token.copy_(other.cls_token)
        model.pos_embed.copy_(other.pos_embedding)
        # a pixel's place in their patches is (row, column, channel), in a convolution (channel, row, column)
        linear = other.to_patch_embedding[2]
        model.patch_embed.proj.weight.copy_(linear.weight.view(WIDTH, 8, 8, 3).permute(0, 3, 1, 2))
        model.patch_embed.proj.bias.copy_(linear.bias)
        for block, (attn, mlp) in zip(model.blocks, other.transformer.layers, strict=True):
            block.norm1.load_state_dict(attn.norm.state_dict())
            block.attn.qkv.weight.copy_(attn.to_qkv.weight)
            if "qkv_bias" not in left:
                block.attn.qkv.bias.zero_()
            else:
                block.attn.qkv.bias.normal_(std=0.1)
            block.attn.reatten_matrix.weight.copy_(attn.reattn_weights[:, :, None, None])
            block.attn.proj.load_state_dict(attn.to_out[0].state_dict())
            block.norm2.load_state_dict(mlp.net[0].state_dict())
            block.mlp.fc1.load_state_dict(mlp.net[1].state_dict())
            block.mlp.fc2.load_state_dict(mlp.net[4].state_dict())
            block.attn = TheirAttention(block.attn, left)
        model.norm.load_state_dict(other.mlp_head[0].state_dict())
        model.head.load_state_dict(other.mlp_head[1].state_dict())
    if "embedding" not in left:
        model.patch_embed = copy.deepcopy(other.to_patch_embedding)
    if "eps" not in left:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5
    return model.eval()


def logits(model, left, x):
    if "pooling" in left:
        return model.head(model.norm(model.forward_features(x))[:, 1:].mean(1))
    # their average is over all tokens, after the class token joined them, and the norm comes after it
    kept, model.norm = model.norm, nn.Identity()
    out = model.head(kept(model.forward_features(x).mean(1)))
    model.norm = kept
    return out


def distance(left):
    other, x = theirs().eval(), torch.randn(2, 3, 32, 32).double()
    expected = other(x)
    return ((logits(ours(other, left), left, x) - expected).norm() / expected.norm()).item()


def test_with_all_differences_taken_away_the_networks_are_one():
    assert distance(set()) < 1e-10


@pytest.mark.parametrize("left", sorted(DIFFERENCES))
def test_each_difference_by_itself_shows(left):
    assert distance({left}) > (1e-7 if left == "eps" else 1e-3)


def test_what_is_different_at_the_start():
    torch.manual_seed(0)
    attn = theirs().transformer.layers[0][0]
    assert attn.to_qkv.bias is None
    assert [name for name, _ in attn.named_parameters() if "reattn" in name] == [
        "reattn_weights", "reattn_norm.1.weight", "reattn_norm.1.bias"
    ]  # fmt: skip
    many = DeepViT(image_size=32, patch_size=8, num_classes=5, dim=8, depth=1, heads=64, mlp_dim=8)
    assert many.transformer.layers[0][0].scale == 64**-0.5  # the head's width is 64, whatever the model's
    weights = many.transformer.layers[0][0].reattn_weights
    assert abs(weights.std() - 1) < 0.05
    assert abs(many.cls_token.std() - 1) < 0.6
    assert abs(many.pos_embedding.std() - 1) < 0.3
    layer = ReAttention(64, 64)
    assert layer.reatten_matrix.weight.abs().max() <= 64**-0.5
    assert layer.reatten_matrix.bias.shape == (64,)
    model = timm.create_model("deepvit_d16_patch16_224", img_size=32, depth=1)
    assert model.cls_token.std() < 1e-5
    assert abs(model.pos_embed.std() - 0.02) < 0.01
    assert model.blocks[0].attn.qkv.bias is not None
    assert model.blocks[0].norm1.eps == 1e-6
    assert attn.norm.eps == 1e-5
    assert deepvit.models.names()


def test_the_layer_norm_of_theirs_is_the_same_in_training_and_the_batch_norm_of_ours_is_not():
    x = torch.randn(2, 3, 32, 32).double()
    other = theirs()
    assert torch.equal(other.train()(x), other.eval()(x))
    layer = ReAttention(WIDTH, HEADS).double()
    tokens = torch.randn(2, 5, WIDTH).double()
    assert not torch.allclose(copy.deepcopy(layer).train()(tokens), layer.eval()(tokens))
