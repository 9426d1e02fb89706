"""Padding does not move what cures compute: NaFlexViT's masked batches against each image by itself."""

from __future__ import annotations

import pytest
import timm
import torch
from cures.small_vits import stir

from deepvit import cures
from deepvit.cures.masks import token_mean, uniform_attention
from deepvit.errors import UserError

LENGTHS = (9, 16, 4)
MEANS = ["featscale", "attnscale", "centred_attention", "contranorm", "mv_split"]
OTHERS = ["value_residual", "neutreno", "sigma_reparam", "twicing", "gated_attention", "orthogonal_residual"]


def naflex(**options):
    torch.manual_seed(0)
    return timm.create_model(
        "naflexvit_base_patch16_gap", depth=3, embed_dim=48, num_heads=4, num_classes=5, patch_size=4, img_size=16, **options
    )  # fmt: skip


def batch():
    """Three images as patches [3, 16, 48], padded with large numbers, their places and which are real."""
    patches = 30 * torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(1))
    coord, valid = torch.zeros(3, 16, 2, dtype=torch.long), torch.zeros(3, 16, dtype=torch.bool)
    for image, length in enumerate(LENGTHS):
        side = int(length**0.5)
        coord[image, :length] = torch.stack(
            torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1
        ).view(-1, 2)
        valid[image, :length] = True
        patches[image, :length] /= 30
    return patches, coord, valid


def run(model, patches, coord, valid):
    return model({"patches": patches, "patch_coord": coord, "patch_valid": valid})


@pytest.mark.parametrize("key_only", [False, True])
@pytest.mark.parametrize(
    "cure",
    [
        *MEANS,
        "value_residual",
        "neutreno",
        "sigma_reparam",
        "twicing",
        "gated_attention",
        "orthogonal_residual",
        None,
    ],
)
def test_padding_moves_nothing(cure, key_only):
    model = naflex(use_key_only_attn_mask=key_only).eval()
    if cure is not None:
        cures.apply(model, cure, init="paper")
        stir(model, "attn_scale"), stir(model, "feat_scale")
    patches, coord, valid = batch()
    padded = run(model, patches, coord, valid)
    changed = torch.where(valid[..., None], patches, torch.randn_like(patches))
    assert torch.equal(run(model, changed, coord, valid), padded)
    for image, length in enumerate(LENGTHS):
        alone = run(
            model,
            patches[image : image + 1, :length],
            coord[image : image + 1, :length],
            valid[image : image + 1, :length],
        )
        torch.testing.assert_close(padded[image : image + 1], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize("cure", MEANS)
def test_no_mask_and_a_mask_that_leaves_all_are_one(make, images, cure):
    model = cures.apply(make(), cure, init="paper")
    stir(model, "attn_scale"), stir(model, "feat_scale")
    expected = model(images)
    everything = torch.ones(3, 1, 17, 17, dtype=torch.bool)
    torch.testing.assert_close(model(images, attn_mask=everything), expected, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=f"{cure} takes no is_causal"):
        model(images, is_causal=True)


def test_uniform_attention_is_what_attention_with_equal_scores_gives():
    values = torch.randn(2, 6, 8, dtype=torch.float64)
    heads = values.view(2, 6, 2, 4).transpose(1, 2)
    for mask in (
        torch.rand(2, 1, 6, 6) > 0.4,
        torch.rand(2, 2, 6, 6) > 0.4,
        torch.rand(2, 1, 1, 6) > 0.4,
        torch.rand(6, 6) > 0.4,
    ):
        mask[..., 0] = True  # SDPA gives NaN where nothing may be looked at
        score = torch.zeros(2, 2, 6, 6, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        expected = (score.softmax(-1) @ heads).transpose(1, 2).reshape(2, 6, 8)
        torch.testing.assert_close(uniform_attention(values, mask, 2).expand(2, 6, 8), expected)
        additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        torch.testing.assert_close(uniform_attention(values, additive, 2).expand(2, 6, 8), expected)
    nothing = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    assert (uniform_attention(values, nothing, 2) == 0).all()
    assert (token_mean(values, nothing) == 0).all()
