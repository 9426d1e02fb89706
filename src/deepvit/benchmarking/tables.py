"""A suite's result as a Markdown table, and the growth of cost as a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from deepvit.files import atomic_path

GROWTHS = {"growth_with_tokens": ("tokens", "tokens N"), "growth_with_depth": ("depths", "blocks")}


def table_of(result: dict[str, Any]) -> str:
    """Markdown: ratios to the floor (median of the rounds, quartiles in brackets), seconds and memory of the floor."""
    hardware, versions = result["hardware"], result["versions"]
    accelerators = ", ".join(hardware["accelerators"]) or f"{hardware['threads']} threads"
    head = f"{hardware['processor']}, {accelerators}; torch {versions['torch']}, timm {versions['timm']}"
    lines = [f"# Suite {result['suite']}", "", f"{head}. Floor: {result['floor']}.", ""]
    if result["suite"] == "engine":
        return "\n".join([*lines, *engine_lines(result), ""])
    others = list(
        dict.fromkeys(name for row in result["rows"] for name in row["sides"] if name != result["floor"])
    )
    lines += [
        "Times as ratios to the floor of the same round: median [quartiles]; memory: ratio of peak extra bytes.", "",
        "| case | dtype | mode | floor | " + " | ".join(f"{name}: time | memory" for name in others) + " |",
        "|---|---|---|---:|" + "---:|---:|" * len(others),
    ]  # fmt: skip
    for row in result["rows"]:
        sides = row["sides"]
        floor = sides[result["floor"]]
        cells = [f"{1e3 * floor['median_s']:.2f} ms{megabytes(floor)}"]
        for name in others:
            side = sides.get(name)
            if side is None:
                cells += ["–", "–"]
                continue
            memory = side.get("memory_ratio")
            cells.append(f"{side['ratio']:.2f} [{side['ratio_low']:.2f}, {side['ratio_high']:.2f}]")
            cells.append("–" if memory is None else f"{memory:.2f}")
        case = row["case"] if isinstance(row["case"], str) else str(row["case"].get("name", row["case"]))
        lines.append(f"| {case} | {row['dtype']} | {row['mode']} | " + " | ".join(cells) + " |")
    for key, (sizes, label) in GROWTHS.items():
        for side, growth in result.get(key, {}).items():
            fitted = ", ".join(f"{name.replace('_', ' ')} {v:.2f}" for name, v in exponents(growth).items())
            lines += [
                "",
                f"{side}: fitted exponents over {label} ({', '.join(map(str, growth[sizes]))}): {fitted}.",
            ]
    return "\n".join([*lines, ""])


def exponents(growth: dict[str, Any]) -> dict[str, float]:
    """The fitted exponents of a growth, by what they are of."""
    return {
        k.removesuffix("exponent").strip("_") or "time": v
        for k, v in growth.items()
        if "exponent" in k and v is not None
    }


def megabytes(side: dict[str, Any]) -> str:
    """Peak extra memory for a table cell."""
    value = side.get("peak_extra_bytes")
    return "" if value is None else f", {value / 1e6:.0f} MB"


def engine_lines(result: dict[str, Any]) -> list[str]:
    """The engine suite has two loops and one ratio."""
    lines = ["| loop | steps a second (slowest, fastest) | peak memory MB |", "|---|---:|---:|"]
    for name, side in result["sides"].items():
        rates = f"{side['steps_per_second']:.2f} ({side['slowest']:.2f}, {side['fastest']:.2f})"
        memory = "–" if side["peak_bytes"] is None else f"{side['peak_bytes'] / 1e6:.0f}"
        lines.append(f"| {name} | {rates} | {memory} |")
    ratio = (
        f"{100 * result['ratio']:.1f}% ({100 * result['ratio_low']:.1f} to {100 * result['ratio_high']:.1f}%)"
    )
    lines += ["", f"deepvit train reaches {ratio} of the bare loop's steps a second, start-up aside."]
    beside = result.get("timm_ratios")
    if beside:
        lines += [
            "",
            f"It makes {median(beside):.2f} times the steps of timm's train.py a second ({min(beside):.2f} to "
            f"{max(beside):.2f}), with the same model, images, batch and policy, but for the crop.",
        ]
    return lines


def draw_growth(result: dict[str, Any], path: Path) -> bool:
    """Plot seconds over tokens or blocks, both on logarithmic axes, a line a side; False where there is nothing to plot."""
    found = [(key, *names) for key, names in GROWTHS.items() if result.get(key)]
    if not found:
        return False
    key, sizes, label = found[0]
    series = sorted({name for growth in result[key].values() for name in growth if name.endswith("_s")})
    figure = Figure(figsize=(4.6 * len(series), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(series), squeeze=False)[0], series, strict=True):
        for side, growth in result[key].items():
            axes.plot(growth[sizes], growth[name], marker="o", markersize=4, label=side)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=label,
            ylabel="seconds",
            title=name.removesuffix("_s").replace("_", " "),
        )
        axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=160)
    return True
