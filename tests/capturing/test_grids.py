"""No grid is told that the network did not make; refusals give advice that works; the rooms' arrows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import timm
import torch

import deepvit.capturing
from deepvit.capturing import attention_blocks, capture
from deepvit.collapse.catalogue import METRICS
from deepvit.collapse.plan import Plan
from deepvit.errors import UserError

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_a_random_subset_of_the_patches_has_no_grid() -> None:
    """patch_drop_rate=0.75 leaves 4 of 16 patches: not two rows of two."""
    options = {"img_size": 64, "depth": 2, "patch_drop_rate": 0.75}
    model = timm.create_model("vit_tiny_patch16_224", **options).train()
    with torch.no_grad(), capture(model) as seen:
        model(IMAGES)
    layout = seen.layout["blocks.0"]
    assert (layout.keys, layout.key_prefix, layout.key_grid, layout.sure) == (5, 1, None, False)
    assert "4 tokens are none of the grids that the network made (4 x 4)" in layout.decided
    assert any("no patch grid" in note for note in seen.notes)
    model.eval()
    with torch.no_grad(), capture(model) as seen:
        model(IMAGES)
    assert seen.layout["blocks.0"].key_grid == (4, 4)


def test_no_distance_is_measured_and_no_map_drawn_without_a_grid() -> None:
    options = {"img_size": 64, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    whole = deepvit.diagnose(model, [IMAGES], progress=False)
    model.norm_pre = FirstFour()
    part = deepvit.diagnose(model, [IMAGES], progress=False)
    assert "attention_distance" in whole.measurements.series
    assert "attention_distance" not in part.measurements.series
    assert part.measurements.blocks[0].grid is None
    assert whole.measurements.maps[0].maps
    assert not any(image.maps for image in part.measurements.maps)
    assert any("no patch grid" in note for note in part.measurements.provenance["notes"])


class FirstFour(torch.nn.Module):
    """Keeps the class token and four patches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :5]


def test_davit_is_read_where_its_maps_are_over_tokens() -> None:
    model = timm.create_model("davit_tiny", num_classes=5).eval()
    with torch.no_grad(), capture(model) as seen:
        model(IMAGES)
    assert {layout.module.rpartition(".")[2] for layout in seen.layout.values()} == {"attn"}
    assert all(".0.attn" in layout.module for layout in seen.layout.values())  # .1 is over channels
    assert any(s.reason == "its maps are over channels" for s in seen.skipped)


def test_a_network_with_maps_over_channels_only_is_not_told_to_choose_blocks() -> None:
    model = timm.create_model("edgenext_xx_small", num_classes=5).eval()
    with pytest.raises(UserError, match="no other attention was seen; choose another model") as refusal:
        attention_blocks(model, IMAGES)
    assert "blocks=" not in str(refusal.value)


def test_the_blocks_that_a_refusal_names_can_be_captured() -> None:
    model = timm.create_model("xcit_nano_12_p16_224", depth=2, num_heads=2, num_classes=5).eval()
    with pytest.raises(UserError) as refusal:
        attention_blocks(model, IMAGES)
    (advice,) = re.findall(r"blocks=\[([\d, ]+)\]", str(refusal.value))
    with torch.no_grad(), capture(model, blocks=[int(n) for n in advice.split(",")]) as seen:
        model(IMAGES)
    assert list(seen.attention) == ["cls_attn_blocks.0", "cls_attn_blocks.1"]
    (typed,) = re.findall(r"--blocks ([\d,]+)", str(refusal.value))
    report = deepvit.diagnose(model, [IMAGES], blocks=typed, lesions="off", progress=False)
    assert [block.name for block in report.measurements.blocks] == list(seen.attention)
    with pytest.raises(UserError, match="over channels"):
        deepvit.diagnose(model, [IMAGES], blocks="last:1", lesions="off", progress=False)


def test_the_formula_says_of_how_many_rows_the_rank_is() -> None:
    (rank,) = (m for m in METRICS.values() if m.key == "map_rank")
    assert f"{Plan.rank_rows} of them, evenly spaced" in rank.formula


def test_no_file_of_the_room_imports_itself_by_way_of_another() -> None:
    """Not under TYPE_CHECKING either: a type that two files need of one another has a third place."""
    room = Path(deepvit.capturing.__file__).parent
    arrows = {
        path.stem: {
            node.module.rpartition(".")[2]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepvit.capturing.")
        }
        for path in room.glob("*.py")
    }

    def reached(start: str, seen: set[str]) -> set[str]:
        for other in arrows.get(start, set()) - seen:
            seen = reached(other, seen | {other})
        return seen

    assert [name for name in arrows if name in reached(name, set())] == []
    assert max(len(path.read_text().splitlines()) for path in room.glob("*.py")) <= 250
