"""What capture promises of any model: bits unchanged, hooks gone, clear refusals."""

from __future__ import annotations

import pytest
import timm
import torch

from deepvit.diagnostics.capturing import capture


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in m.__dict__) for m in model.modules()
    )


def test_maps_and_tokens_by_block_name(vit, images):
    expected = vit(images)
    with capture(vit) as seen:
        out = vit(images)
    assert torch.equal(out, expected)
    assert list(seen.attention) == list(seen.tokens) == seen.blocks == ["blocks.0", "blocks.1", "blocks.2"]
    assert seen.attention["blocks.1"].shape == (2, 3, 17, 17)
    assert seen.tokens["blocks.1"].shape == (2, 17, 192)
    assert seen.layout["blocks.1"].key_prefix == seen.token_layout["blocks.1"].prefix == 1
    assert seen.layout["blocks.1"].key_grid == (4, 4)
    assert all(c.passed for c in seen.checks.values())
    assert not seen.attention["blocks.0"].requires_grad
    assert hooks(vit) == 0
