"""Hugging Face and vit-pytorch networks, built from a config: prefix tokens, grids and tokens as they are defined.

What is expected is the families' definition (how many learned tokens stand where, which blocks hold patches);
tokens are compared with what the module before or around them returns, by hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from vit_pytorch.cross_vit import CrossViT
from vit_pytorch.cvt import CvT
from vit_pytorch.levit import LeViT
from vit_pytorch.simple_vit_with_register_tokens import SimpleViT
from vit_pytorch.vit_with_patch_dropout import ViT as DroppingViT
from vit_pytorch.xcit import XCiT

from deepvit.capturing import attention_blocks, capture, control, survey
from deepvit.errors import UserError

SMALL: dict[str, Any] = {
    **{"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
    **{"image_size": 64, "patch_size": 16},
}
LUCID: dict[str, Any] = {
    **{
        "image_size": 64,
        "patch_size": 16,
        "num_classes": 5,
        "dim": 48,
        "depth": 2,
        "heads": 4,
        "mlp_dim": 64,
    },
}
IMAGE, VIDEO = (3, 64, 64), (4, 3, 64, 64)
DETR = {
    **{"use_timm_backbone": False, "backbone": None, "use_pretrained_backbone": False, "num_queries": 20},
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4},
    **{"decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
}


def detr() -> nn.Module:
    backbone = hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    return hf.DetrForObjectDetection(hf.DetrConfig(backbone_config=backbone, **DETR))


@dataclass(frozen=True)
class Family:
    """``tokens``: block to (all tokens, prefix, behind, grid); ``why``: what is said where there is no grid."""

    name: str
    build: Callable[[], nn.Module]
    tokens: dict[str, tuple[int, int, int, tuple[int, int] | None]]
    image: tuple[int, ...] = IMAGE
    why: str = ""
    sure: bool = True


FAMILIES = [
    Family(
        "CLIP",
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SMALL)),
        {"encoder.layers.1": (17, 1, 0, (4, 4))},
    ),
    Family(
        "SigLIP",
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL)),
        {"encoder.layers.1": (16, 0, 0, (4, 4))},
    ),
    Family(
        "DINOv2 with registers",
        lambda: hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**SMALL)),
        {"encoder.layer.1": (21, 5, 0, (4, 4))},
    ),
    Family(
        "DINOv3",
        lambda: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**SMALL, num_register_tokens=4)),
        {"model.layer.1": (21, 5, 0, (4, 4))},
    ),
    Family(
        "SegFormer",
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 48])
        ),
        {
            "segformer.stages.0.blocks.0": (256, 0, 0, (16, 16)),
            "segformer.stages.3.blocks.0": (4, 0, 0, (2, 2)),
        },
    ),
    Family(
        "Swin",
        lambda: hf.SwinModel(
            hf.SwinConfig(image_size=64, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
        ),
        {"encoder.layers.0.blocks.1": (256, 0, 0, (16, 16)), "encoder.layers.1.blocks.1": (64, 0, 0, (8, 8))},
    ),
    Family(
        "SAM",
        lambda: hf.SamVisionModel(
            hf.SamVisionConfig(
                **SMALL, mlp_dim=64, window_size=2, output_channels=16, global_attn_indexes=[1]
            )
        ),
        {"vision_encoder.layers.0": (16, 0, 0, (4, 4)), "vision_encoder.layers.1": (16, 0, 0, (4, 4))},
    ),
    Family(
        "Hiera",
        lambda: hf.HieraModel(
            hf.HieraConfig(image_size=[64, 64], embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
        ),
        {"encoder.stages.0.layers.0": (256, 0, 0, None), "encoder.stages.3.layers.0": (4, 0, 0, None)},
        why="in another order",
    ),
    Family(
        "DETR",
        detr,
        {"model.encoder.layers.1": (16, 0, 0, (4, 4)), "model.decoder.layers.1": (20, 0, 0, None)},
        image=(3, 128, 128),
        why="as many tokens as learned queries (model.query_position_embeddings.weight)",
    ),
    Family(
        "ViTMAE",
        lambda: hf.ViTMAEForPreTraining(
            hf.ViTMAEConfig(
                **SMALL,
                decoder_hidden_size=32,
                decoder_num_hidden_layers=1,
                decoder_num_attention_heads=4,
                decoder_intermediate_size=32,
            )
        ),
        {"vit.layers.1": (5, 1, 0, None), "decoder.decoder_layers.0": (17, 1, 0, (4, 4))},
        why="4 tokens are none of the grids that the network made (4 x 4)",
        sure=False,
    ),
    Family(
        "VideoMAE",
        lambda: hf.VideoMAEModel(hf.VideoMAEConfig(**SMALL, num_frames=4, tubelet_size=2)),
        {"encoder.layer.1": (32, 0, 0, None)},
        image=VIDEO,
        why="2 x 4 x 4 patches of a video",
    ),
    Family(
        "ViViT",
        lambda: hf.VivitModel(hf.VivitConfig(**SMALL, num_frames=4, tubelet_size=[2, 16, 16])),
        {"layers.1": (33, 1, 0, None)},
        image=VIDEO,
        why="2 x 4 x 4 patches of a video",
    ),
    Family(
        "YOLOS",
        lambda: hf.YolosForObjectDetection(
            hf.YolosConfig(**{**SMALL, "image_size": [64, 64]}, num_detection_tokens=10)
        ),
        {"vit.encoder.layer.1": (27, 1, 10, (4, 4))},
    ),
    Family(
        "vit-pytorch, registers",
        lambda: SimpleViT(**LUCID, num_register_tokens=4),
        {"transformer.layers.1": (20, 4, 0, (4, 4))},
    ),
    Family(
        "vit-pytorch CrossViT",
        lambda: CrossViT(
            **{"image_size": 64, "num_classes": 5, "sm_dim": 32, "lg_dim": 48, "sm_patch_size": 8},
            **{"lg_patch_size": 16, "sm_enc_depth": 1, "lg_enc_depth": 1, "depth": 1, "cross_attn_depth": 1},
        ),
        {
            "multi_scale_encoder.layers.0.0.layers.0": (65, 1, 0, (8, 8)),
            "multi_scale_encoder.layers.0.1.layers.0": (17, 1, 0, (4, 4)),
        },
    ),
    Family(
        "vit-pytorch, patch dropout",
        lambda: DroppingViT(**LUCID, patch_dropout=0.5).train(),
        {"transformer.layers.1": (9, 1, 0, None)},
        why="8 tokens are none of the grids that the network made (4 x 4)",
        sure=False,
    ),
    Family(
        "vit-pytorch LeViT",
        lambda: LeViT(
            image_size=64, num_classes=5, stages=2, dim=(16, 32), depth=1, heads=(2, 4), mlp_mult=2
        ),
        {"backbone.0.layers.0": (16, 0, 0, (4, 4)), "backbone.2.layers.0": (4, 0, 0, (2, 2))},
    ),
    Family(
        "vit-pytorch CvT",
        lambda: CvT(
            **{"num_classes": 5, "s1_emb_dim": 16, "s2_emb_dim": 32, "s3_emb_dim": 48, "s1_heads": 1},
            **{"s2_heads": 2, "s3_heads": 3, "s1_depth": 1, "s2_depth": 1, "s3_depth": 1},
        ),
        {"layers.0.2.layers.0": (256, 0, 0, (16, 16)), "layers.2.2.layers.0": (16, 0, 0, (4, 4))},
    ),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_prefix_tokens_grid_and_reason(family: Family) -> None:
    torch.manual_seed(0)
    model = family.build()
    if "dropout" not in family.name:
        model.eval()
    with torch.no_grad(), capture(model) as seen:
        model(torch.randn(2, *family.image))
    for block, (tokens, prefix, behind, grid) in family.tokens.items():
        layout = seen.token_layout[block]
        assert (layout.tokens, layout.prefix, layout.suffix, layout.grid) == (tokens, prefix, behind, grid)
        assert layout.patches == slice(prefix, tokens - behind)
        if grid is None:
            assert family.why in layout.decided
            assert layout.sure == family.sure
            assert any(block in note or "more" in note for note in seen.notes if "no patch grid" in note)
        else:
            assert layout.sure
        for key, of_map in seen.layout.items():
            if of_map.block == block and of_map.windows == 1 and of_map.queries == tokens:
                assert of_map.query_grid == (None if behind else grid), key
                assert of_map.query_prefix == prefix


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_the_control_holds_or_the_family_is_refused_with_the_reason(family: Family) -> None:
    """Every map and all patches replaced by themselves: the same output, or no lesion of it is believed."""
    torch.manual_seed(0)
    model = family.build().eval()
    images = torch.randn(2, *family.image)
    if family.name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[family.name]):
            control(survey(model, images[:1]), images)
    else:
        assert control(survey(model, images[:1]), images) < 2e-4


REFUSED: dict[str, str] = {}
"""Families that lesions refuse, and a part of the reason."""


@pytest.mark.parametrize("name", ["vit-pytorch LeViT", "vit-pytorch CvT"])
def test_tokens_on_a_small_grid_are_those_of_the_module(name: str) -> None:
    """As many pixels across as channels, or fewer: the sizes alone tell nothing."""
    torch.manual_seed(0)
    model = next(f for f in FAMILIES if f.name == name).build().eval()
    outputs: dict[str, torch.Tensor] = {}
    for block in ("backbone.0", "backbone.2", "layers.0.2", "layers.1.2", "layers.2.2"):
        if block in dict(model.named_modules()):
            module = model.get_submodule(block)
            module.register_forward_hook(lambda _m, _a, out, block=block: outputs.update({block: out}))
    with torch.no_grad(), capture(model) as seen:
        model(torch.randn(2, 3, 64, 64))
    for block, out in outputs.items():
        (tokens,) = (t for key, t in seen.tokens.items() if key.startswith(block + "."))
        assert torch.equal(tokens, out.flatten(2).mT)


@pytest.mark.parametrize("width", [10, 16], ids=["width of no axis", "as wide as there are tokens"])
def test_maps_over_channels_of_any_inner_width_are_refused(width: int) -> None:
    torch.manual_seed(0)
    model = XCiT(**LUCID, cls_depth=1, dim_head=width).eval()
    images = torch.randn(2, 3, 64, 64)
    with pytest.raises(
        UserError, match=rf"are over channels \({width} x {width} in each head\).*blocks=\[2\]"
    ):
        attention_blocks(model, images)
    with torch.no_grad(), capture(model, blocks=[2]) as seen:  # as the refusal advises
        model(images)
    assert list(seen.layout) == ["cls_transformer.layers.0.0"]
