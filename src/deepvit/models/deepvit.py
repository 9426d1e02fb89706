"""DeepViT (Zhou et al. 2021, arXiv 2103.11886): timm's ViT with Re-attention, and its published sizes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.layers import ReAttention
from deepvit.layers.blocks import parse_blocks
from deepvit.layers.entries import of_tokens
from deepvit.models.block import ResidualScaleBlock
from deepvit.models.checks import Size, check_image, check_width
from deepvit.models.conv_stem import ConvStem

STEMS = {"linear": PatchEmbed, "conv": ConvStem}
# Decided by the options below; a second way to say the same would have to lose against one of them.
_DECIDED = {"block_fn": "residual_scale", "embed_layer": "stem", "attn_layer": "reattention_blocks"}


class DeepVisionTransformer(VisionTransformer):  # type: ignore[misc]
    """timm's ``VisionTransformer`` whose chosen blocks use Re-attention; images [B, C, H, W] to logits [B,
    K].

    Everything that timm's class has is here too (features, pooling, dynamic image size, checkpointing,
    layer groups); state names are the official code's. Weights of another resolution are loaded by resizing
    the position table (bicubic), whichever way they come in.

    Args:
        img_size: pixels, one number or (height, width).
        patch_size: the same of a patch, which divides the image.
        embed_dim: width of a token.
        num_heads: attention heads, which divide the width.
        depth: number of blocks.
        global_pool: timm's; by default the class token, or the average where there is none.
        reattention_blocks: blocks with Re-attention (``layers.blocks.parse_blocks``); ``"none"`` is the
            plain network of the same shape.
        stem: ``"linear"`` or ``"conv"`` (:class:`ConvStem`).
        residual_scale: r of ``x + branch(norm(r·x)) / r``, above 0.
        rescale_by_head_dim: multiply the normalised maps by head width^-1/2 (published for S only).
        backend: how Re-attention is computed (``deepvit.ops``); the result is the same.
        theta_init: initial head mixing, ``"official"`` or ``"identity"``.
        reattention_norm: ``"batch"`` as published, or ``"none"``.
        **kwargs: further arguments of timm's ``VisionTransformer``.

    Raises:
        UserError: sizes that do not divide, blocks that do not exist, an unknown stem, a scale that is not
            positive.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = None,
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 12,
        mlp_ratio: float = 3.0,
        *,
        class_token: bool = True,
        reattention_blocks: str | int | Sequence[int] = "all",
        stem: str = "linear",
        residual_scale: float = 1.0,
        rescale_by_head_dim: bool = False,
        backend: str = "auto",
        theta_init: str = "official",
        reattention_norm: str = "batch",
        **kwargs: Any,
    ) -> None:
        for name, option in _DECIDED.items():
            if name in kwargs:
                raise UserError(f"{name} cannot be given to a DeepViT model, which sets it from {option}")
        check_width(embed_dim, num_heads)
        if not (kwargs.get("dynamic_img_size") and kwargs.get("dynamic_img_pad")):
            check_image(img_size, patch_size)
        if stem not in STEMS:
            raise UserError(f"stem={stem!r} is unknown: use one of {', '.join(STEMS)}")
        if not residual_scale > 0:
            raise UserError(f"residual_scale={residual_scale} must be above 0 (1 leaves the block as it is)")
        if global_pool is None:
            global_pool = "token" if class_token else "avg"
        if global_pool == "token" and not class_token:
            raise UserError(
                "global_pool='token' needs the class token: use global_pool='avg' or class_token=True"
            )
        chosen = parse_blocks(reattention_blocks, depth)
        attention = functools.partial(
            ReAttention, backend=backend, init=theta_init, norm=reattention_norm, rescale=rescale_by_head_dim
        )
        number = itertools.count()  # the base makes its blocks in order, and says nothing of their number

        def block(dim: int, num_heads: int, **options: Any) -> nn.Module:
            chosen_attention = None
            if next(number) in chosen:
                chosen_attention = attention(dim, num_heads=num_heads, **_attention_options(options))
            return ResidualScaleBlock(
                attention=chosen_attention,
                residual_scale=residual_scale,
                dim=dim,
                num_heads=num_heads,
                **options,
            )

        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            class_token=class_token,
            embed_layer=STEMS[stem],
            block_fn=block,
            **kwargs,
        )
        self.reattention_blocks = tuple(chosen)
        of_tokens(self, self.patch_embed.num_patches + self.num_prefix_tokens)

    def init_weights(self, *args: Any, **kwargs: Any) -> None:
        """timm's initialisation, then the head mixing's own, which timm's schemes know nothing of."""
        super().init_weights(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, ReAttention):
                module.reset_theta()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Resize the position table of another resolution; no square grid: left to the error.

        The table tells of how many tokens the maps were whose statistics come with it.
        """
        name, table = prefix + "pos_embed", self.pos_embed
        saved = state_dict.get(name)
        if saved is not None and table is not None and saved.ndim == 3 and saved.shape != table.shape:
            extra = 0 if self.no_embed_class else self.num_prefix_tokens
            side = math.isqrt(max(saved.shape[1] - extra, 0))
            if side and side * side + extra == saved.shape[1] and saved.shape[2] == table.shape[2]:
                of_tokens(self, side * side + self.num_prefix_tokens)
                state_dict[name] = resample_abs_pos_embed(
                    saved,
                    new_size=list(self.patch_embed.grid_size),
                    old_size=[side, side],
                    num_prefix_tokens=extra,
                    verbose=True,
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


_ATTENTION_OPTIONS = (
    "qkv_bias",
    "qk_norm",
    "proj_bias",
    "attn_drop",
    "proj_drop",
    "norm_layer",
    "device",
    "dtype",
)


def _attention_options(block_options: dict[str, Any]) -> dict[str, Any]:
    """What a block's options say about its attention, as timm's block hands it on."""
    options = {name: block_options[name] for name in _ATTENTION_OPTIONS if name in block_options}
    return {**options, "scale_norm": block_options.get("scale_attn_norm", False)}


def _cfg(size: int = 224, first_conv: str = "patch_embed.proj", crop_pct: float = 0.9) -> dict[str, Any]:
    """How the published models want their images; no weights are hosted, so there is no address."""
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": first_conv,
        "classifier": "head",
        "license": "mit",
        "paper_ids": "arXiv:2103.11886",
        "paper_name": "DeepViT: Towards Deeper Vision Transformer",
    }


default_cfgs = {
    "deepvit_tiny_d16_patch4_32": _cfg(32, crop_pct=1.0),
    "deepvit_d16_patch16_224": _cfg(),
    "deepvit_d24_patch16_224": _cfg(),
    "deepvit_d32_patch16_224": _cfg(),
    "deepvit_s_patch16_224": _cfg(first_conv="patch_embed.conv1"),
    "deepvit_l_patch16_224": _cfg(first_conv="patch_embed.conv1"),
    "deepvit_l_patch16_384": _cfg(384, first_conv="patch_embed.conv1", crop_pct=1.0),
}


def _create(variant: str, pretrained: bool, given: dict[str, Any], **published: Any) -> DeepVisionTransformer:
    """The published settings under what the caller gave; "last K" stays within the depth."""
    options = {**published, **given}
    last = options.pop("last", None)
    if last is not None:
        options.setdefault("reattention_blocks", f"last:{min(last, options['depth'])}")
    first = "patch_embed.conv1" if options.get("stem", "linear") == "conv" else "patch_embed.proj"
    overlay = {"first_conv": first, **(options.pop("pretrained_cfg_overlay", None) or {})}
    return build_model_with_cfg(  # type: ignore[no-any-return]
        DeepVisionTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        pretrained_cfg_overlay=overlay,
        feature_cfg={"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"},
        **options,
    )


@register_model  # type: ignore[untyped-decorator]
def deepvit_tiny_d16_patch4_32(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """16 blocks of width 96 and 4 heads for small images (1.5 M parameters); ours, no row of the paper.

    Deep and narrow enough to show collapse, and its cure, on a laptop.
    """
    return _create(
        "deepvit_tiny_d16_patch4_32",
        pretrained,
        kwargs,
        img_size=32,
        patch_size=4,
        depth=16,
        embed_dim=96,
        num_heads=4,
    )


@register_model  # type: ignore[untyped-decorator]
def deepvit_d16_patch16_224(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """The paper's 16-block network: width 384, Re-attention in every block (24.4 M parameters)."""
    return _create("deepvit_d16_patch16_224", pretrained, kwargs, depth=16, embed_dim=384)


@register_model  # type: ignore[untyped-decorator]
def deepvit_d24_patch16_224(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """The paper's 24-block network: width 384, Re-attention in every block (36.3 M parameters)."""
    return _create("deepvit_d24_patch16_224", pretrained, kwargs, depth=24, embed_dim=384)


@register_model  # type: ignore[untyped-decorator]
def deepvit_d32_patch16_224(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """The paper's 32-block network: width 384, Re-attention in every block (48.1 M parameters)."""
    return _create("deepvit_d32_patch16_224", pretrained, kwargs, depth=32, embed_dim=384)


_S = {
    "depth": 16,
    "embed_dim": 396,
    "stem": "conv",
    "last": 5,
    "residual_scale": 0.5,
    "rescale_by_head_dim": True,
}
_L = {"depth": 32, "embed_dim": 420, "stem": "conv", "last": 12, "residual_scale": 0.5}


@register_model  # type: ignore[untyped-decorator]
def deepvit_s_patch16_224(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """DeepViT-S: 16 blocks of width 396, conv stem, Re-attention in the last 5 (27.3 M parameters)."""
    return _create("deepvit_s_patch16_224", pretrained, kwargs, **_S)


@register_model  # type: ignore[untyped-decorator]
def deepvit_l_patch16_224(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """DeepViT-L: 32 blocks of width 420, conv stem, Re-attention in the last 12 (58.9 M parameters)."""
    return _create("deepvit_l_patch16_224", pretrained, kwargs, **_L)


@register_model  # type: ignore[untyped-decorator]
def deepvit_l_patch16_384(pretrained: bool = False, **kwargs: Any) -> DeepVisionTransformer:
    """DeepViT-L for images of 384×384 pixels."""
    return _create("deepvit_l_patch16_384", pretrained, kwargs, **_L)
