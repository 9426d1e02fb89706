"""Tables of README that come from files: measured accuracy and measured cost.

``python docs/make/readme.py`` writes them into README.md, between their marks; tests/test_readme.py compares.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
OFFICIAL = "official formulation"


def depth_table() -> str:
    """The table of records/depth as it is."""
    return (ROOT / "records/depth/table.md").read_text("utf-8").strip()


STUDIES = {
    "depth": "handwritten digits, top-1",
    "cures": "handwritten digits, shorter training, top-1",
    "photographs": "photographs (CIFAR-10, JPEG copy), top-1",
    "camvid": "street scenes (CamVid) from scratch, mean IoU",
}
PUBLISHED = ("plain", "reattention", "diversity")


def records_table() -> str:
    """Mean and standard deviation over seeds of the watched figure, a row a study and depth."""
    lines = [
        "| study | blocks | plain | reattention | diversity | best of the others |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for study, what in STUDIES.items():
        with (ROOT / f"records/{study}/table.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        figure = next(name for name in rows[0] if name in ("top1", "miou"))
        for depth in dict.fromkeys(row["depth"] for row in rows):
            values: dict[str, list[float]] = {}
            for row in rows:
                if row["depth"] == depth and row[figure]:
                    values.setdefault(row["method"], []).append(float(row[figure]))
            others = [name for name in values if name not in PUBLISHED]
            best = max(others, key=lambda name: statistics.mean(values[name]), default=None)
            cells = [_spread(values[name]) for name in PUBLISHED]
            cells.append(
                "–"
                if best is None
                else f"{_spread(values[best])} ({best.replace('+', ' + ')}, of {len(others)})"
            )
            blocks = depth or str(BLOCKS[study])
            lines.append(f"| [{what}](records/{study}/README.md) | {blocks} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# Of studies at one depth, whose tables do not say it.
BLOCKS = {"cures": 16, "camvid": 12}


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


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


TABLES = {"depth": depth_table, "records": records_table, "cost": cost_table}


def written(text: str) -> str:
    """README with its tables as the files have them."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
        text, times = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}{table()}{end}", text, flags=re.DOTALL)  # noqa: B023
        assert times == 1, f"README has no place for {name}"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text("utf-8")), "utf-8")
