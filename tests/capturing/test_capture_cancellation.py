"""Re-attention amplifies what is left after the shared part of its maps cancels: rounding grows with it."""

from __future__ import annotations

import pytest
import timm
import torch

import deepvit
from deepvit.errors import UserError


def amplifying() -> torch.nn.Module:
    """A DeepViT whose norms amplify near-uniform maps a thousandfold, on tokens with a large common part."""
    model = timm.create_model(
        "deepvit_tiny_d16_patch4_32",
        depth=2,
        img_size=16,
        patch_size=4,
        embed_dim=32,
        num_heads=4,
        backend="streaming",
    ).eval()
    for block in model.blocks:
        block.attn.var_norm.running_var.fill_(1e-12)
        block.attn.var_norm.eps = 1e-12
        with torch.no_grad():
            block.attn.qkv.bias[64:] += 3.0
            block.attn.var_norm.running_mean.copy_(
                block.attn.reatten_matrix.weight.sum(dim=(1, 2, 3)) / 17 + block.attn.reatten_matrix.bias
            )
    return model


def test_rounding_of_amplified_maps_is_no_mismatch() -> None:
    model, images = amplifying(), torch.randn(4, 3, 16, 16)
    with torch.no_grad(), deepvit.capture(model) as seen:
        model(images)
    assert all(check.passed for check in seen.checks.values())
    assert max(check.tolerance for check in seen.checks.values()) > 5e-5  # the case is a hard one


def test_a_wrong_map_is_still_a_mismatch(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepvit import ops

    right = ops.reattention_maps

    def wrong(*args: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        softmax, mixed = right(*args, **options)
        return softmax, mixed.roll(1, -1)

    model = timm.create_model(
        "deepvit_tiny_d16_patch4_32", depth=2, img_size=16, patch_size=4, embed_dim=32, num_heads=4
    ).eval()
    monkeypatch.setattr(ops, "reattention_maps", wrong)
    with pytest.raises(UserError, match="captured map"), torch.no_grad(), deepvit.capture(model):
        model(torch.randn(2, 3, 16, 16))
