"""Narrow forms of the usual backbones through a whole run; their real sizes are in test_full_size.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tasks.segmentation.going_on import trains_resumes_and_loads

NARROW = {"depth": 2, "embed_dim": 24, "num_heads": 2}
SWIN = {"embed_dim": 12, "num_heads": [1, 2, 2, 2], "depths": [1, 1, 2, 1]}


@pytest.mark.parametrize(
    ("model", "args", "options"),
    [
        ("vit_small_patch16_224", NARROW, {}),
        ("vit_small_patch14_reg4_dinov2", NARROW, {}),
        ("swin_tiny_patch4_window7_224", SWIN, {}),
        ("deepvit_s_patch16_224", NARROW, {}),
        ("vit_small_patch16_224", NARROW, {"cures": "reattention", "grad_checkpointing": True}),
    ],
    ids=["plain", "registers", "swin", "deepvit_s", "cured"],
)
def test_a_backbone_trains_resumes_and_loads(tmp_path: Path, model: str, args: dict, options: dict) -> None:
    trains_resumes_and_loads(tmp_path / "run", 45, model=model, model_args=args, channels=8, **options)
