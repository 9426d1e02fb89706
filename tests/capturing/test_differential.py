"""Differential attention is one row a block: the difference map, and the two softmax maps behind it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import deepvit
from deepvit.capturing import capture
from deepvit.cures import apply


def published() -> nn.Module:
    return timm.create_model("vit_dlittle_patch16_reg1_gap_256", img_size=64, depth=2, num_classes=5)


def cured() -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5, num_heads=6)
    apply(model, "differential_attention")
    return model


@torch.no_grad()
def difference(attn: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both softmax maps [B, H, 2, N, N] and the map that multiplies V, by the paper's formula."""
    q, k, _ = attn.qkv(x).chunk(3, dim=-1)
    q, k = (t.unflatten(-1, (attn.num_heads, 2, attn.head_dim)).permute(0, 2, 3, 1, 4) for t in (q, k))
    q, k = attn.q_norm(q), attn.k_norm(k)
    maps = (q.double() @ k.double().mT * attn.head_dim**-0.5).softmax(-1)
    if attn.lambda_a is not None:
        strength = attn.lambda_a.exp() - attn.lambda_b.exp() + attn.lambda_init
    else:
        strength = (
            (attn.lambda_q1 * attn.lambda_k1).sum().exp()
            - (attn.lambda_q2 * attn.lambda_k2).sum().exp()
            + attn.lambda_init
        )
    return maps, maps[:, :, 0] - strength * maps[:, :, 1]


@pytest.mark.parametrize("build", [published, cured])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "eager"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train, dropout"])
def test_one_map_a_block(build, fused, training) -> None:
    torch.manual_seed(0)
    model = build()
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    for block in model.blocks:
        block.attn.fused_attn = fused
        block.attn.attn_drop_p = block.attn.attn_drop.p = 0.5 if training else 0.0
    model.train(training)
    inputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), capture(model) as seen:
        model(images)
    assert list(seen.attention) == ["blocks.0", "blocks.1"]
    for block, x, key in zip(model.blocks, inputs, seen.attention, strict=True):
        softmax, matrix = difference(block.attn, x)
        if not training or fused:  # eager dropout acts on the maps, before they are subtracted
            torch.testing.assert_close(seen.attention[key], matrix.float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(seen.softmax[key], softmax.flatten(1, 2).float(), atol=1e-6, rtol=1e-5)
        assert seen.checks[key].passed
        assert "difference" in seen.layout[key].measured or "sub" in seen.layout[key].measured


def test_a_report_has_one_row_a_block_with_mixed_maps() -> None:
    torch.manual_seed(0)
    model = published()
    report = deepvit.diagnose(model, [torch.randn(2, 3, 64, 64)], progress=False)
    assert [block["name"] for block in report.metrics["blocks"]] == ["blocks.0", "blocks.1"]
    assert all(block["mixed"] for block in report.metrics["blocks"])
