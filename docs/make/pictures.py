"""Pictures of the guides and of README, made from what the commands write, into docs/pictures.

    python docs/make/pictures.py cost                  # from benchmarks/results/model.json
    python docs/make/pictures.py report demo           # from what `make demo` leaves, in headless Chromium
    python docs/make/pictures.py collapse STUDY SEED   # similarity of blocks, from a study of three methods at one depth

A picture of a report needs Chromium (Debian: apt-get install chromium) and playwright, which comes with deepvit[dev].
"""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
WIDTH = 1180
MARGIN = 28
# Name of a picture → (page of a study, what is shown of it, at most so high).
PARTS = {
    "report": ("plain", None, 860),
    "report-worth": ("plain", "#worth", 900),
    "report-profiles": ("plain", "#profiles", 770),
    "report-pairs": ("plain", "#matrix", 900),
    "report-maps": ("plain", "#maps", 900),
    "compare": (None, None, 860),
}
THEMES = {"light": ("#ffffff", "#24292f", "#d0d7de"), "dark": ("#0d1117", "#d6dde4", "#3d444d")}


def cost() -> None:
    """Time and memory of a training step in float32, as ratios to timm's ViT: ours and the official formulation."""
    from matplotlib.figure import Figure

    model: dict[str, Any] = json.loads((ROOT / "benchmarks/results/model.json").read_text("utf-8"))
    rows = [r for r in model["rows"] if r["mode"] == "train" and r["dtype"] == "float32"]
    rows.sort(key=lambda r: r["tokens"])
    sides = {"deepvit": "#0072B2", "official formulation": "#D55E00"}
    for theme, (ground, ink, grid) in THEMES.items():
        figure = Figure(figsize=(9.2, 2.9), layout="constrained", facecolor=ground)
        for axis, (key, title) in zip(
            figure.subplots(1, 2, sharey=True),
            (("ratio", "time of a training step"), ("memory_ratio", "memory of a training step")), strict=True,
        ):  # fmt: skip
            axis.set_facecolor(ground)
            for offset, (side, colour) in zip((-0.19, 0.19), sides.items(), strict=True):
                values = [row["sides"][side][key] for row in rows]
                places = [index + offset for index in range(len(rows))]
                axis.barh(places, values, height=0.36, color=colour, label=side)
                for place, value in zip(places, values, strict=True):
                    axis.text(value + 0.04, place, f"{value:.2f}", va="center", color=ink, fontsize=8)
            axis.axvline(1, color=ink, linewidth=1, linestyle="--")
            axis.set_title(f"{title} (1 = timm's ViT)", color=ink, fontsize=10)
            axis.set_yticks(range(len(rows)), [", ".join(r["case"].split(", ")[:2]) for r in rows])
            axis.set_xlim(0, 1.15 * max(s[key] for r in rows for n, s in r["sides"].items() if n in sides))
            axis.tick_params(colors=ink, labelsize=8)
            axis.spines[:].set_color(grid)
            axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, labelcolor=ink, fontsize=9, loc="lower right")
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=160, facecolor=ground)
        keep(buffer.getvalue(), f"cost-{theme}")


def report(study: Path) -> None:
    """Screens of the plain network's report and of the study's comparison, in both colour schemes."""
    plain = next(iter(sorted((study / "runs").glob("plain*-s*"))))
    pages = {"plain": plain / "report.html", None: study / "report.html"}
    with chromium() as browser:
        for scheme in THEMES:
            for name, (page_name, part, height) in PARTS.items():
                if not pages[page_name].exists():
                    continue
                page = browser.new_page(
                    viewport={"width": WIDTH, "height": height}, color_scheme=scheme, device_scale_factor=1.35
                )
                page.goto(pages[page_name].absolute().as_uri())
                page.wait_for_selector("html[data-ready]")
                clip = {"x": 0, "y": 0, "width": WIDTH, "height": height}
                if part is not None:
                    page.evaluate(
                        "document.querySelectorAll('header, nav').forEach(bar => bar.style.position = 'static')"
                    )
                    box = page.locator(part).bounding_box()
                    clip |= {"y": box["y"] + MARGIN, "height": min(box["height"] - MARGIN, height)}
                keep(page.screenshot(full_page=True, clip=clip), f"{name}-{scheme}")
                page.close()


def collapse(study: Path, seed: str) -> None:
    """The overview of one seed: similarity with the block before, and of all pairs of blocks."""
    from deepvit.report import figures, load

    names = {"plain": "plain", "reattention": "Re-attention", "diversity": "patch diversification"}
    runs = {title: next(iter((study / "runs").glob(f"{method}-*s{seed}"))) for method, title in names.items()}
    figures.overview({title: load(run) for title, run in runs.items()}, PICTURES / "collapse.png")
    keep((PICTURES / "collapse.png").read_bytes(), "collapse")


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser that asks no host for anything."""
    from playwright.sync_api import sync_playwright

    path = next(p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def keep(png: bytes, name: str) -> None:
    """A picture in 256 colours, which drawings need no more than, at most 1,600 pixels wide."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.width > 1600:
        image = image.resize((1600, round(image.height * 1600 / image.width)), Image.Resampling.LANCZOS)
    PICTURES.mkdir(exist_ok=True)
    image.quantize(256, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    what, *words = sys.argv[1:] or ["help"]
    if what == "cost":
        cost()
    elif what == "report":
        report(Path(words[0]))
    elif what == "collapse":
        collapse(Path(words[0]), words[1])
    else:
        print(__doc__)
