"""Captured maps equal the models' own eager maps: one small model of each family. Writes the table.

``python tests/capturing/test_capture_families.py`` measures all of them and writes the table. The eager
maps are read without anything of deepvit: by a hook on what the model's own eager code passes its map to.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers import Dinov2Model as HfDinov2
from vit_pytorch import ViT as LucidViT
from vit_pytorch.deepvit import DeepViT as LucidDeepViT

import deepvit.models  # noqa: F401 - registers the DeepViT models with timm
from deepvit.capturing import capture, control, survey

PAGE = Path(__file__).parents[2] / "docs" / "capture.md"
TOLERANCE = 1e-6

# attention layer (or None: in order) and map [B, H, N, M]
Eager = list[tuple[str | None, Tensor]]


def set_fused(model: nn.Module, fused: bool) -> None:
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused


def watched(model: nn.Module, images: Tensor, ending: str, *, of_input: bool) -> Eager:
    """The maps that reach (or leave) each module of that name during one eager pass."""
    maps: Eager = []

    def listen(name):
        owner = name.rpartition(".")[0]
        return lambda _module, args, out=None: maps.append((owner, (args[0] if of_input else out).clone()))

    handles = [
        (m.register_forward_pre_hook if of_input else m.register_forward_hook)(listen(name))
        for name, m in model.named_modules()
        if name.endswith(ending)
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return maps


def fused_off(model: nn.Module, images: Tensor) -> Eager:
    model = copy.deepcopy(model)
    set_fused(model, False)
    return watched(model, images, ".attn_drop", of_input=True)


def softmax_calls(model: nn.Module, images: Tensor) -> Eager:
    """For an attention that is eager only and hands its map to no module: what its softmax returns."""
    maps: Eager = []
    original = Tensor.softmax

    def listening(self, *args, **kwargs):
        maps.append((None, original(self, *args, **kwargs)))
        return maps[-1][1]

    Tensor.softmax = listening
    try:
        model(images)
    finally:
        Tensor.softmax = original
    return maps


def output_attentions(model: nn.Module, images: Tensor) -> Eager:
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return [(None, a) for a in model(images, output_attentions=True).attentions]


def need_weights(model: nn.Module, images: Tensor) -> Eager:
    maps: Eager = []
    inputs: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        m.register_forward_pre_hook(lambda mod, args, name=name: inputs.append((name, mod, args[0])))
        for name, m in model.named_modules()
        if isinstance(m, nn.MultiheadAttention)
    ]
    model(images)
    for handle in handles:
        handle.remove()
    for name, module, x in inputs:
        maps.append((name, module(x, x, x, need_weights=True, average_attn_weights=False)[1]))
    return maps


def attend_module(model: nn.Module, images: Tensor) -> Eager:
    return watched(model, images, ".attend", of_input=False)


def reattn_norm(model: nn.Module, images: Tensor) -> Eager:
    return watched(model, images, ".reattn_norm", of_input=False)


def official_reattention(model: nn.Module, images: Tensor) -> Eager:
    """Norm(Theta softmax(q k^T / sqrt d)) with the layer's own convolution and batch norm, as published."""
    maps: Eager = []
    for name, qkv in watched(model, images, ".attn.qkv", of_input=False):
        layer = model.get_submodule(name)
        q, k, _ = qkv.unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = layer.var_norm(layer.reatten_matrix((q @ k.mT * layer.scale).softmax(-1)))
        maps.append((name, mixed * layer.head_dim**-0.5 if layer.rescale else mixed))
    return maps


@dataclass(frozen=True)
class Family:
    name: str
    model: str
    build: Callable[[], nn.Module]
    eager: Callable[[nn.Module, Tensor], Eager]
    how: str
    size: int = 64
    fused: bool | None = None  # force timm's switch; None leaves the default


def hf(model: type, config: type, implementation: str, **extra: int) -> Callable[[], nn.Module]:
    return lambda: model(
        config(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=64,
            patch_size=16,
            attn_implementation=implementation,
            **extra,
        )
    )


def of_timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **options)


SMALL = {"img_size": 64, "depth": 2}
SWIN = {"img_size": 56, "depths": (2, 2), "num_heads": (3, 6), "embed_dim": 24}
OURS = "the paper's formula, by the layer's own parameters"
LUCID = {
    "image_size": 64,
    "patch_size": 16,
    "num_classes": 5,
    "dim": 48,
    "depth": 2,
    "heads": 4,
    "mlp_dim": 64,
}
OFF = "`fused_attn = False`"
ATTENTIONS = "`output_attentions=True`, eager"
FAMILIES = [
    Family("ViT", "vit_tiny_patch16_224", of_timm("vit_tiny_patch16_224", **SMALL), fused_off, OFF),
    Family(
        "DeiT, distilled",
        "deit_tiny_distilled_patch16_224",
        of_timm("deit_tiny_distilled_patch16_224", **SMALL),
        fused_off,
        OFF,
    ),
    Family(
        "BEiT",
        "beit_base_patch16_224",
        of_timm("beit_base_patch16_224", **SMALL, embed_dim=48, num_heads=3),
        fused_off,
        OFF,
    ),
    Family(
        "EVA-02",
        "eva02_tiny_patch14_224",
        of_timm("eva02_tiny_patch14_224", img_size=56, depth=2),
        fused_off,
        OFF,
        56,
    ),
    Family(
        "DINOv2, registers",
        "vit_small_patch14_reg4_dinov2",
        of_timm("vit_small_patch14_reg4_dinov2", img_size=56, depth=2),
        fused_off,
        OFF,
        56,
    ),
    Family("CaiT", "cait_xxs24_224", of_timm("cait_xxs24_224", **SMALL), fused_off, OFF),
    Family(
        "Swin",
        "swin_tiny_patch4_window7_224",
        of_timm("swin_tiny_patch4_window7_224", **SWIN),
        fused_off,
        OFF,
        56,
    ),
    Family(
        "Swin, fused",
        "swin_tiny_patch4_window7_224",
        of_timm("swin_tiny_patch4_window7_224", **SWIN),
        fused_off,
        OFF,
        56,
        fused=True,
    ),
    Family("PVT v2", "pvt_v2_b0", of_timm("pvt_v2_b0"), fused_off, OFF),
    Family(
        "MaxViT", "maxvit_rmlp_pico_rw_256", of_timm("maxvit_rmlp_pico_rw_256", img_size=64), fused_off, OFF
    ),
    Family(
        "MViT v2",
        "mvitv2_tiny",
        of_timm("mvitv2_tiny", img_size=64),
        softmax_calls,
        "its own softmax (eager only)",
    ),
    Family(
        "DeepViT",
        "deepvit_d16_patch16_224",
        of_timm("deepvit_d16_patch16_224", **SMALL),
        official_reattention,
        OURS,
    ),
    Family(
        "DeepViT-S",
        "deepvit_s_patch16_224",
        of_timm("deepvit_s_patch16_224", **SMALL, reattention_blocks="all"),
        official_reattention,
        OURS,
    ),
    *(
        Family(
            f"Hugging Face {family}, {way}",
            model.__name__,
            hf(model, config, way),
            output_attentions,
            ATTENTIONS,
        )
        for family, model, config in (
            ("ViT", ViTForImageClassification, ViTConfig),
            ("DeiT", DeiTForImageClassification, DeiTConfig),
            ("DINOv2", HfDinov2, Dinov2Config),
            ("DINOv2 with registers", Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
        )
        for way in ("sdpa", "eager")
    ),
    Family(
        "torchvision ViT",
        "VisionTransformer",
        lambda: torchvision.models.VisionTransformer(64, 16, 2, 4, 48, 64),
        need_weights,
        "`need_weights=True`",
    ),
    Family("vit-pytorch ViT", "ViT", lambda: LucidViT(**LUCID), attend_module, "output of its `attend`"),
    Family(
        "vit-pytorch DeepViT",
        "DeepViT",
        lambda: LucidDeepViT(**LUCID),
        reattn_norm,
        "output of its `reattn_norm`",
    ),
]


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    maps: int
    difference: float  # largest absolute, over all maps
    rebuilt: float  # largest relative error of the captured maps' own checks
    same_bits: bool
    sharpest: float  # largest entry times the number of keys: 1 would be a uniform map
    prefix: str


def model_of(family: Family) -> tuple[nn.Module, Tensor]:
    """A small model with weights at which maps are far from uniform, and images."""
    torch.manual_seed(0)
    model = family.build().eval()
    for p in model.parameters():
        # Initial weights are so small that any map would do: spread them.
        nn.init.normal_(p, std=(2.0 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.5)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
    if family.fused is not None:
        set_fused(model, family.fused)
    return model, torch.randn(2, 3, family.size, family.size)


@torch.no_grad()
def measure(family: Family) -> Outcome:
    model, images = model_of(family)
    expected = model(images)
    with capture(model) as seen:
        out = model(images)
    eager = family.eager(model, images)
    assert len(eager) == len(seen.attention), f"{len(eager)} eager maps, {len(seen.attention)} captured"
    difference = sharpest = 0.0
    for (module, wanted), (key, got) in zip(eager, seen.attention.items(), strict=True):
        assert module in (None, seen.layout[key].module)
        assert got.shape == wanted.shape
        difference = max(difference, float((got - wanted).abs().max()))
        sharpest = max(sharpest, float(got.max()) * got.shape[-1])
    prefixes = sorted({layout.key_prefix for layout in seen.layout.values()})
    return Outcome(
        maps=len(eager),
        difference=difference,
        rebuilt=max(check.error for check in seen.checks.values()),
        same_bits=torch.equal(first(out), first(expected)),
        sharpest=sharpest,
        prefix=" or ".join(map(str, prefixes)),
    )


def first(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_captured_maps_are_the_eager_maps(family):
    outcome = measure(family)
    assert outcome.difference <= TOLERANCE
    assert outcome.same_bits
    assert outcome.sharpest > 2.0, "maps this uniform would agree with anything"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@torch.no_grad()
def test_maps_and_patches_replaced_by_themselves_change_nothing(family):
    model, images = model_of(family)
    assert control(survey(model, images[:1]), images) < 2e-4


def test_the_page_lists_every_family():
    rows = re.findall(r"^\| ([^|]+) \| `[^`]+` \|.*\| (\S+) \| \S+ \|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [family.name for family in FAMILIES]
    assert all(float(difference) <= TOLERANCE for _, difference in rows)


def table() -> str:
    rows = [
        "| family | model | compared with | maps | prefix tokens "
        "| largest difference | rebuilt output, relative |",
        "|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        outcome = measure(family)
        assert outcome.same_bits, family.name
        rows.append(
            f"| {family.name} | `{family.model}` | {family.how} | {outcome.maps} | {outcome.prefix} "
            f"| {outcome.difference:.1e} | {outcome.rebuilt:.1e} |"
        )
    return "\n".join(rows)


def main() -> None:
    begin, end = "<!-- table: begin -->", "<!-- table: end -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{table()}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
