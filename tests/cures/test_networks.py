"""Which of timm's networks take which cure: the table of docs/cure.md is what happens.

``python tests/cures/test_networks.py --write`` writes it anew.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import deepvit  # noqa: F401  (registers its models)
from deepvit import cures
from deepvit.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "cure.md"
BEGIN, END = "<!-- networks: begin -->\n", "<!-- networks: end -->"
SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 4, "img_size": 32, "patch_size": 8}
# What people call it → (timm's name, how to make it small).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit_small_patch16_224", SMALL),
    "DeiT III": ("deit3_small_patch16_224", SMALL),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "CLIP": ("vit_base_patch16_clip_224", SMALL),
    "SigLIP": ("vit_base_patch16_siglip_224", SMALL),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", SMALL),
    "DeepViT": ("deepvit_d16_patch16_224", SMALL),
    "DINOv3": ("vit_small_patch16_dinov3", SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", SMALL),
    "NaFlexViT": ("naflexvit_base_patch16_gap", {"depth": 3, "embed_dim": 48, "num_heads": 4}),
    "ViT, differential": ("vit_dlittle_patch16_reg1_gap_256", SMALL),
    "ViT, relative positions": ("vit_relpos_small_patch16_224", SMALL),
    "ViT, parallel blocks": ("vit_small_patch16_18x2_224", SMALL),
    "BEiT": ("beit_base_patch16_224", SMALL),
    "CaiT": ("cait_xxs24_224", {**SMALL, "depth_token_only": 1}),
    "XCiT": ("xcit_nano_12_p16_224", {"depth": 3, "embed_dim": 48, "num_heads": 4, "img_size": 32}),
    "Swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16}),
}


def takes(network: str) -> dict[str, str]:
    """Cure → "yes", or why not."""
    name, options = NETWORKS[network]
    found = {}
    for cure, record in cures.CURES.items():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=5, **options).eval()
        try:
            found_before = {"neurons": {"1": [0, 1]}} if cure == "test_time_registers" else {}
            cures.apply(model, cure, blocks="last:1" if record.removes else "all", **found_before)
        except UserError as error:
            found[cure] = str(error)
            continue
        size = (
            timm.data.resolve_model_data_config(model)["input_size"]
            if "img_size" not in options
            else (3, 32, 32)
        )
        with torch.no_grad():
            assert model(torch.randn(1, *size)).isfinite().all(), f"{network}, {cure}"
        found[cure] = "yes"
    return found


def row(network: str, found: dict[str, str]) -> str:
    """One line of the table: how many, and whichever side is shorter by name."""
    taken = [cure for cure, answer in found.items() if answer == "yes"]
    missing = [cure for cure in found if cure not in taken]

    def named(names: list[str]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    words = "all" if not missing else "none" if not taken else (
        f"all but {named(missing)}" if len(missing) <= len(taken) else named(taken)
    )  # fmt: skip
    return f"| {network} | `{NETWORKS[network][0]}` | {len(taken)} | {words} |"


def shown() -> list[str]:
    text = PAGE.read_text("utf-8")
    return [line for line in text.split(BEGIN)[1].split(END)[0].splitlines() if re.match(r"\| .* \| `", line)]


@pytest.mark.parametrize("network", ["ViT", "DINOv3", "CaiT", "Swin"])
def test_a_row_is_what_happens(network: str) -> None:
    assert row(network, takes(network)) in shown()


@pytest.mark.slow
def test_every_row_is_what_happens() -> None:
    assert [row(network, takes(network)) for network in NETWORKS] == shown()


def test_refusals_are_one_line_and_name_the_cure() -> None:
    for cure, answer in takes("Swin").items():
        assert answer == "yes" or ("\n" not in answer and cure in answer), answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    lines = [row(network, takes(network)) for network in NETWORKS]
    table = "\n".join(["| network | in timm | of all cures | which |", "|---|---|---:|---|", *lines])
    print(table)
    if parser.parse_args().write:
        text = PAGE.read_text("utf-8")
        head, rest = text.split(BEGIN)
        PAGE.write_text(head + BEGIN + table + "\n" + END + rest.split(END)[1], "utf-8")
