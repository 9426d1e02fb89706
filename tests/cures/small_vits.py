"""Small timm ViTs of three kinds: plain, with registers and no class token, with LayerScale or qk-norm."""

from __future__ import annotations

import timm
import torch

SMALL = {"depth": 3, "num_classes": 5, "img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 4}
KINDS = {
    "plain": ("vit_small_patch16_224", {}),
    "registers": ("vit_little_patch16_reg4_gap_256", {}),
    "layerscale": ("deit3_small_patch16_224", {}),
    "qk_norm": ("vit_small_patch16_224", {"qk_norm": True}),
}


def build(kind="plain", seed=0, **options):
    """A model of a kind, its weights stirred so that gains and biases are at no special value."""
    name, extra = KINDS[kind]
    torch.manual_seed(seed)
    model = timm.create_model(name, **SMALL, **extra, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def stir(model, only):
    """Move the parameters whose name holds ``only`` off their start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter += 0.3 * torch.randn_like(parameter)
