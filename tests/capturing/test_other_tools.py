"""What docs/other-tools.md says of timm's and vit-pytorch's own extraction is so with the versions at hand."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.utils.attention_extract import AttentionExtract

import deepvit

vit_pytorch = pytest.importorskip("vit_pytorch")
SMALL = {"depth": 2, "img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 2}
IMAGES = torch.randn(2, 3, 32, 32)


def test_timm_finds_no_map_where_attention_is_fused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    assert model.blocks[0].attn.fused_attn
    with pytest.raises(RuntimeError, match="No node names found"):
        AttentionExtract(model)
    with torch.no_grad(), deepvit.capture(model) as seen:
        model(IMAGES)
    for block in model.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        theirs = AttentionExtract(model)(IMAGES)
    for name, maps in theirs.items():
        torch.testing.assert_close(seen.attention[name.removesuffix(".attn.softmax")], maps)
    assert len(theirs) == 2


def test_vit_pytorch_records_its_own_vit_only() -> None:
    from vit_pytorch.deepvit import DeepViT
    from vit_pytorch.recorder import Recorder

    shape = {
        "image_size": 32,
        "patch_size": 8,
        "num_classes": 3,
        "dim": 24,
        "depth": 2,
        "heads": 2,
        "mlp_dim": 24,
    }
    assert Recorder(vit_pytorch.ViT(**shape))(IMAGES)[1].shape == (2, 2, 2, 17, 17)
    other = DeepViT(**shape)
    assert Recorder(other)(IMAGES)[1] is None
    with torch.no_grad(), deepvit.capture(other) as seen:
        other.eval()(IMAGES)
    assert [tuple(maps.shape) for maps in seen.attention.values()] == [(2, 2, 17, 17)] * 2
