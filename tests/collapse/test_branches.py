"""Cosine of each branch with the stream that it is added to: against the branches' own outputs, where a block has such."""

from __future__ import annotations

import pytest
import timm
import torch
from collapse.lesioned import images_of, working

from deepvit.collapse import measure

KEYS = ("attention_branch_cosine", "mlp_branch_cosine")


def by_hand(model, images, blocks, prefix):
    """cos(branch, stream) of both branches of every block, from what the branches return."""
    streams, branches, values = {}, {}, []
    handles = []
    for number, block in enumerate(blocks):
        for norm, branch in (("norm1", "attn"), ("norm2", "mlp")):
            at = number, branch
            handles.append(
                getattr(block, norm).register_forward_pre_hook(
                    lambda m, a, at=at: streams.__setitem__(at, a[0])
                )
            )
            handles.append(
                getattr(block, branch).register_forward_hook(
                    lambda m, a, out, at=at: branches.__setitem__(at, out)
                )
            )
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    for number, _ in enumerate(blocks):
        row = []
        for branch in ("attn", "mlp"):
            x, f = (kept[number, branch][:, prefix:].double() for kept in (streams, branches))
            row.append(float(((x * f).sum(-1) / (x.norm(dim=-1) * f.norm(dim=-1))).mean()))
        values.append(row)
    return values


@pytest.mark.parametrize("class_token", [True, False])
def test_each_branch_equals_brute_force(class_token):
    model = working(depth=4, class_token=class_token)
    images = images_of(model, 5)
    found = measure(model, [images[:2], images[2:]], lesions="off").series
    expected = by_hand(model, images, model.blocks, int(class_token))
    for key, place in zip(KEYS, (0, 1), strict=True):
        assert found[key].values == pytest.approx([row[place] for row in expected], abs=1e-5)
        assert all(-1 <= value <= 1 for value in found[key].values)


@pytest.mark.parametrize("name", ["Hugging Face", "Swin", "torchvision"])
def test_other_families_have_them(name):
    if name == "Hugging Face":
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        model, side = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, **sizes)), 32
    elif name == "Swin":
        sizes = {"img_size": 56, "depths": (2, 2), "num_heads": (3, 6), "embed_dim": 24}
        model, side = timm.create_model("swin_tiny_patch4_window7_224", **sizes), 56
    else:
        from torchvision.models import VisionTransformer

        model, side = VisionTransformer(32, 8, 2, 2, 32, 48), 32
    found = measure(model.eval(), [torch.randn(2, 3, side, side)], lesions="off").series
    for key in KEYS:
        assert all(value is not None for value in found[key].values), key


@pytest.mark.parametrize("name", ["after the branch", "after the sum"])
def test_blocks_that_norm_afterwards_have_none(name):
    if name == "after the branch":
        sizes = {"img_size": 64, "depths": (2,), "num_heads": (2,), "embed_dim": 16, "window_size": 8}
        model, side = timm.create_model("swinv2_tiny_window8_256", **sizes), 64
    else:

        class Encoder(torch.nn.Module):
            def __init__(self):
                super().__init__()
                layer = torch.nn.TransformerEncoderLayer(32, 2, 48, batch_first=True)
                self.stem = torch.nn.Conv2d(3, 32, 8, 8)
                self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

            def forward(self, x):
                return self.encoder(self.stem(x).flatten(2).mT).mean(1)

        model, side = Encoder(), 32
    found = measure(model.eval(), [torch.randn(2, 3, side, side)], lesions="off").series
    assert "change" in found or "patch_similarity" in found
    assert not any(key in found and any(v is not None for v in found[key].values) for key in KEYS)
