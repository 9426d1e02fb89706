"""Captures one network of every family there is, and compares with what the network itself computes.

``python tests/capturing/test_every_family.py`` prints the table (minutes); ``--write`` puts it into docs/capture.md,
words after it choose families. Every row is *right*, *refused* with the reason, or *wrong*. Nothing of
deepvit stands on the other side of a comparison:

- maps: those that the softmax calls of the same network return with fused attention switched off;
- tokens: the outputs of the blocks, by hooks; on a grid, the two axes that have the proportions of the image
  are its rows and columns (images are not square wherever a network takes such);
- prefix tokens and grid: what timm's ``num_prefix_tokens`` or the family's definition says, and the image.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepvit.capturing import (
    Anatomy,
    DropAttention,
    EndAfter,
    Seen,
    SkipBlock,
    capture,
    control,
    intervene,
    refusal,
    survey,
)
from deepvit.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "capture.md"
CLOSE = 1e-5  # of a map's entries, which are at most 1
SIZES: tuple[Any, ...] = ((64, 96), (96, 96), (128, 128), None)  # None: the network's own

# One small network of each of timm's modules that hold attention, and the variants that once went wrong.
TIMM = {
    "beit": "beit_base_patch16_224", "byoanet": "botnet26t_256", "byoanet, eca": "eca_botnext26ts_256",
    "byoanet, halo": "halonet26t", "byoanet, lambda": "lambda_resnet26t", "byobnet": "bat_resnext26ts",
    "cait": "cait_xxs24_224", "coat": "coat_lite_tiny", "convit": "convit_tiny", "crossvit": "crossvit_tiny_240",
    "cpubone": "cpubone_b0_bfrobust", "csatv2": "csatv2", "davit": "davit_tiny", "deepseek_vit": "deepseek_vit_412m",
    "deit": "deit_tiny_distilled_patch16_224", "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1", "efficientformer_v2": "efficientformerv2_s0",
    "efficientvit_mit": "efficientvit_b0", "efficientvit_msra": "efficientvit_m2", "eva": "eva02_tiny_patch14_224",
    "fastvit": "fastvit_sa12", "gcvit": "gcvit_xxtiny", "gemma4_vit": "gemma4_vit_167m", "hiera": "hiera_tiny_224",
    "hieradet_sam2": "sam2_hiera_tiny", "iformer": "iformer_s", "levit": "levit_128s",
    "levit, convolutional": "levit_conv_128s", "lowformer": "lowformer_b0", "maxxvit": "maxvit_rmlp_pico_rw_256",
    "maxxvit, coatnet": "coatnet_nano_rw_224", "maxxvit, coatnext": "coatnext_nano_rw_224",
    "metaformer": "caformer_s18", "mobilenetv3": "mobilenetv4_hybrid_medium", "mobilenetv5": "mobilenetv5_300m",
    "mobilevit": "mobilevit_xxs", "mobilevit, v2": "mobilevitv2_050", "mvitv2": "mvitv2_tiny",
    "mvitv2, class token": "mvitv2_base_cls", "naflexvit": "naflexvit_base_patch16_gap", "nest": "nest_tiny",
    "nextvit": "nextvit_small", "pit": "pit_ti_224", "pvt_v2": "pvt_v2_b0", "qwen3_vit": "qwen3_vit_88m",
    "shvit": "shvit_s1", "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256", "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "tiny_vit": "tiny_vit_5m_224", "tnt": "tnt_s_patch16_224", "twins": "twins_svt_small",
    "twins, pcpvt": "twins_pcpvt_small", "visformer": "visformer_tiny", "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer, differential": "vit_dlittle_patch16_reg1_gap_256",
    "vision_transformer, DINOv2": "vit_small_patch14_reg4_dinov2",
    "vision_transformer, parallel": "vit_small_patch16_18x2_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224", "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vision_transformer_sam": "samvit_base_patch16_224", "vitamin": "vitamin_small_224", "volo": "volo_d1_224",
    "xcit": "xcit_nano_12_p16_224",
}  # fmt: skip
# Too large or of another image otherwise.
OPTIONS: dict[str, dict[str, Any]] = {
    "deepseek_vit_412m": {"depth": 2},
    "gemma4_vit_167m": {"depth": 2},
    "qwen3_vit_88m": {"depth": 2},
    "beit_base_patch16_224": {"depth": 3},
    "samvit_base_patch16_224": {"depth": 4},
    "vit_dlittle_patch16_reg1_gap_256": {"depth": 3},
}
RESIZING = {"crossvit_tiny_240"}  # brings every image to a square of its own


@dataclass
class Outcome:
    """One row of the table."""

    family: str
    model: str
    verdict: str  # right, refused, wrong
    size: str = ""
    maps: str = ""
    tokens: str = ""
    prefix: str = ""
    control: str = (
        ""  # every map and all patches replaced by themselves: largest relative difference of the output
    )
    lesions: str = ""  # of how many blocks: skipped, attention dropped, ended after
    why: str = ""


@contextlib.contextmanager
def softmaxes() -> Iterator[list[Tensor]]:
    """Every softmax that is computed inside."""
    found: list[Tensor] = []
    places = [(torch, "softmax"), (Tensor, "softmax"), (F, "softmax")]
    before = [getattr(*place) for place in places]

    def listening(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def softmax(*args: Any, **kwargs: Any) -> Tensor:
            found.append(original(*args, **kwargs))
            return found[-1]

        return softmax

    for (owner, name), original in zip(places, before, strict=True):
        setattr(owner, name, listening(original))
    try:
        yield found
    finally:
        for (owner, name), original in zip(places, before, strict=True):
            setattr(owner, name, original)


def spread(model: nn.Module) -> None:
    """Weights at which maps are far from uniform: at the initial ones any map would do."""
    for p in model.parameters():
        nn.init.normal_(p, std=(1.5 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.3)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) and m.running_var is not None:
            m.running_var.uniform_(0.5, 1.5)


def of_timm(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network with fused attention, the same without, and images at the smallest size that it takes."""
    for size in SIZES if name not in RESIZING else (None,):
        for options in ({"img_size": size}, {}) if size else ({},):
            torch.manual_seed(0)
            try:
                pair = []
                for fused in (True, False):
                    timm.layers.set_fused_attn(fused)
                    pair.append(
                        timm.create_model(name, num_classes=5, **options, **OPTIONS.get(name, {})).eval()
                    )
                spread(pair[0])
                pair[1].load_state_dict(pair[0].state_dict())
                images = torch.randn(2, 3, *(size or pair[0].pretrained_cfg["input_size"][1:]))
                with torch.no_grad():
                    pair[0](images)
            except Exception:  # this size is none for it; the last one must do
                if size is None:
                    raise
                continue
            finally:
                timm.layers.set_fused_attn(True)
            return pair[0], pair[1], images
    raise AssertionError("unreachable")


def outputs_of(model: nn.Module, names: list[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """The first tensor that each of these modules returns, by hooks."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, out: Any) -> None:
            while isinstance(out, tuple | list):
                out = out[0]
            found[name] = out.clone()

        return hook

    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(keep(name)) for name in names]
    run()
    for handle in handles:
        handle.remove()
    return found


def compare_maps(seen: Seen, calls: list[Tensor]) -> str:
    """``12 of 12``; raises AssertionError for a map that no softmax of the unfused network returned."""
    at = 0
    for key, layout in seen.layout.items():
        wanted = seen.softmax.get(key, seen.attention[key])
        if "softmax map after" in layout.measured and key not in seen.softmax:
            continue  # mixed, and the map before is of another shape
        for place in range(at, len(calls)):
            call = calls[place].detach().float()
            if call.numel() == wanted.numel() and _same(call, wanted):
                at = place
                break
        else:
            raise AssertionError(f"{key}: its map {tuple(wanted.shape)} is none that the unfused network has")
    return str(len(seen.attention))


def _same(call: Tensor, wanted: Tensor) -> bool:
    ways = [call, call.mT] if call.shape[-1] == call.shape[-2] else [call]
    ways += [call.transpose(0, 1)] if call.ndim == 4 else []
    ways += [call.transpose(1, 2)] if call.ndim == 5 else []
    return any(float((way.reshape(wanted.shape) - wanted).abs().max()) <= CLOSE for way in ways)


def compare_tokens(
    seen: Seen, outputs: dict[str, Tensor], image: tuple[int, int], declared: int | None
) -> None:
    """Raises AssertionError for tokens, prefix or grid that are not the module's."""
    for block, tokens in seen.tokens.items():
        layout, out = seen.token_layout[block], outputs.get(block)
        assert tokens.isfinite().all()
        grid = layout.grid
        if out is not None and out.ndim == 4:
            second, last = fits(out.shape[2:], image), fits(out.shape[1:3], image)
            assert second != last or out.shape[1] != out.shape[3], (
                f"{block}: cannot be told apart by the image"
            )
            if second == last:  # tokens of windows: any order but the channels
                assert grid is None, f"{block}: the grid {grid} of {tuple(out.shape)}"
                continue
            expected = out.flatten(2).mT if second else out.flatten(1, 2)
            where = tuple(out.shape[2:] if second else out.shape[1:3])
            assert grid in (where, None), f"{block}: the grid {grid} where it is {where}"
        elif out is not None:
            expected = out
        else:
            expected = tokens
        assert tokens.shape == expected.shape, f"{block}: {tuple(tokens.shape)}, not {tuple(expected.shape)}"
        assert torch.equal(tokens, expected), f"{block}: other tokens than the module's"
        if grid:
            assert fits(grid, image), f"{block}: the grid {grid} of an image {image}"
            count = layout.prefix + math.prod(grid) + getattr(layout, "suffix", 0)
            assert count == layout.tokens, f"{block}: {layout.prefix} + {grid} for {layout.tokens} tokens"
            if declared is not None and expected.ndim == 3:
                assert layout.prefix in (0, declared), (
                    f"{block}: {layout.prefix} prefix tokens, not {declared}"
                )


def fits(grid: Any, image: tuple[int, int]) -> bool:
    """Whether rows and columns have the image's proportions, up to rounding at an edge."""
    strides = [image[axis] / grid[axis] for axis in (0, 1)]
    return abs(grid[0] - image[0] / strides[1]) < 1 and abs(grid[1] - image[1] / strides[0]) < 1


@torch.no_grad()
def measure(family: str, name: str) -> Outcome:
    """Capture one of timm's networks once and compare."""
    model, unfused, images = of_timm(name)
    row = Outcome(family, name, "right", "x".join(map(str, images.shape[2:])))
    try:
        with capture(model) as seen:
            out = model(images)
    except UserError as refused:
        row.verdict, row.why = "refused", str(refused)
        return row
    try:
        plain = model(images)
        assert torch.equal(first(out), first(plain)), "the output changed"
        with softmaxes() as calls:
            unfused(images)
        row.maps = compare_maps(seen, calls)
        called = [b for b in seen.tokens if seen.token_layout[b].read_from == f"output of {b}"]
        outputs = outputs_of(model, called, lambda: model(images))
        compare_tokens(seen, outputs, tuple(images.shape[2:]), getattr(model, "num_prefix_tokens", None))
    except AssertionError as reason:
        row.verdict, row.why = "wrong", str(reason)
    row = finish(row, seen)
    try:
        anatomy = survey(model, images[:1])
        row.control = f"{control(anatomy, images):.0e}"
        row.lesions = possible(anatomy, images)
    except UserError as refused:
        row.control = f"refused: {refused}"
    return row


def possible(anatomy: Anatomy, images: Tensor) -> str:
    """``11, 12, 10 of 12``: blocks that can be skipped, keys whose attention can be dropped, early ends."""
    skip = sum(not refusal(anatomy, SkipBlock(block)) for block in anatomy.blocks)
    end = sum(not refusal(anatomy, EndAfter(block)) for block in anatomy.blocks)
    drop = 0
    for key in anatomy.keys:
        drop += not _refused(anatomy, key, images)
    return f"{skip}, {drop}, {end} of {len(anatomy.blocks)}" + (
        f" ({len(anatomy.keys)} maps)" if len(anatomy.keys) != len(anatomy.blocks) else ""
    )


def _refused(anatomy: Anatomy, key: str, images: Tensor) -> bool:
    try:
        with intervene(anatomy, DropAttention(key)):
            anatomy.model(images[:1])
    except UserError:
        return True
    return False


def finish(row: Outcome, seen: Seen) -> Outcome:
    """Fill in what the layouts say."""
    row.tokens = str(len(seen.tokens))
    row.prefix = " or ".join(map(str, sorted({x.prefix for x in seen.token_layout.values()})))
    left_out = [s for s in seen.skipped if s.reason.startswith("tokens:")]
    if row.verdict == "right" and left_out:
        row.why = (
            f"{len(left_out)} left out: {left_out[0].module} {left_out[0].shape}: {left_out[0].reason[8:]}"
        )
    elif row.verdict == "right":
        row.why = "; ".join(note for note in seen.notes[:1])
    return row


def first(output: Any) -> Tensor:
    """The first tensor of an output."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output


def all_families() -> dict[str, str]:
    """Family to network: those above, and the first of every other module of timm."""
    named = {"deepvit"} | {family.split(",")[0] for family in TIMM}  # our own: test_capture_families.py
    # `cured` is no family: the module by which timm rebuilds a pushed run from its configuration.
    rest = {m: timm.list_models(module=m)[0] for m in timm.list_modules() if m not in named | {"cured"}}
    return {**TIMM, **{m: name for m, name in rest.items() if timm.list_models(module=m)}}


QUICK = (
    "maxxvit, coatnet",
    "efficientvit_msra",
    "levit, convolutional",
    "shvit",
    "davit",
    "nest",
    "mobilevit",
)


def measure_safely(family: str, name: str) -> Outcome:
    """``measure``; whatever else goes wrong is wrong."""
    try:
        return measure(family, name)
    except Exception as error:
        return Outcome(family, name, "wrong", why=f"{type(error).__name__}: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("family", QUICK)
def test_tokens_and_maps_are_the_networks_own(family: str) -> None:
    row = measure_safely(family, TIMM[family])
    assert row.verdict == "right", row.why


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in all_families() if family not in QUICK])
def test_no_family_is_read_wrongly(family: str) -> None:
    row = measure_safely(family, all_families()[family])
    assert row.verdict != "wrong", row.why


def test_the_page_holds_the_table_and_nothing_wrong() -> None:
    part = PAGE.read_text().split("<!-- families: begin -->")[1].split("<!-- families: end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if "|" in line][2:]
    assert {row[3] for row in rows} == {"right", "refused"}
    assert {name for row in rows for name in row[0].split(", ")} >= set(timm.list_modules()) - {
        "deepvit",
        "cured",
    }


def table(rows: list[Outcome]) -> str:
    """Markdown; what holds no attention shares one row."""
    none = [r for r in rows if r.verdict == "refused" and "no attention over tokens was found" in r.why]
    lines = [
        "| family | network | image | verdict | maps | tokens | prefix | control | lesions | why, or remark |",
        "|---" * 10 + "|",
    ]
    for r in rows:
        if r not in none:
            why = r.why.replace("|", "/")
            cells = (
                r.family,
                f"`{r.model}`",
                r.size,
                r.verdict,
                r.maps,
                r.tokens,
                r.prefix,
                r.control,
                r.lesions,
            )
            lines.append("| " + " | ".join((*cells, why)) + " |")
    if none:
        names = ", ".join(r.family for r in none)
        lines.append(
            f"| {names} | | | refused | | | | | | no attention over tokens was found in this model |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write with ``--write``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*")
    parser.add_argument("--write", action="store_true", help="put the table into docs/capture.md")
    chosen = parser.parse_args()
    rows = []
    for family, name in all_families().items():
        if chosen.families and not any(word in (name, family.split(",")[0]) for word in chosen.families):
            continue
        started = time.perf_counter()
        row = measure_safely(family, name)
        rows.append(row)
        seconds = time.perf_counter() - started
        print(
            f"{row.verdict:8} {family:34} {name:36} {seconds:5.1f}s {row.why[:150]}",
            file=sys.stderr,
            flush=True,
        )
    counts = {v: sum(r.verdict == v for r in rows) for v in ("right", "refused", "wrong")}
    print(table(rows), "\n", ", ".join(f"{n} {v}" for v, n in counts.items()), sep="\n")
    if chosen.write:
        begin, end = "<!-- families: begin -->", "<!-- families: end -->"
        before, rest = PAGE.read_text().split(begin)
        PAGE.write_text(f"{before}{begin}\n{table(rows)}\n{end}{rest.split(end)[1]}")
    raise SystemExit(counts["wrong"] > 0)


if __name__ == "__main__":
    main()
