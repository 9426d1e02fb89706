"""Tables of README that come from files: measured accuracy and measured cost.

``python docs/make/readme.py`` writes them into README.md, between their marks; tests/test_readme.py compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
OFFICIAL = "official formulation"


def depth_table() -> str:
    """The table of records/depth as it is."""
    return (ROOT / "records/depth/table.md").read_text("utf-8").strip()


def cost_table() -> str:
    """Ratios to timm's ViT, float32 / bfloat16, by size of batch and image."""
    model: dict[str, Any] = json.loads((ROOT / "benchmarks/results/model.json").read_text("utf-8"))
    found = {(row["case"], row["mode"], row["dtype"]): row["sides"] for row in model["rows"]}
    lines = [
        "| batch | evaluation: time | training step: time | memory "
        "| official formulation, training step: time | memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in dict.fromkeys(row["case"] for row in model["rows"]):

        def pair(mode: str, side: str, figure: str, case: str = case) -> str:
            return " / ".join(f"{found[case, mode, d][side][figure]:.2f}" for d in ("float32", "bfloat16"))

        cells = [
            ", ".join(case.split(", ")[:2]), pair("eval", "deepvit", "ratio"), pair("train", "deepvit", "ratio"),
            pair("train", "deepvit", "memory_ratio"), pair("train", OFFICIAL, "ratio"),
            pair("train", OFFICIAL, "memory_ratio"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"depth": depth_table, "cost": cost_table}


def written(text: str) -> str:
    """README with its tables as the files have them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        text, times = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}{table()}{end}", text, flags=re.DOTALL)  # noqa: B023
        assert times == 1, f"README has no place for {name}"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text("utf-8")), "utf-8")
