"""Exported networks: how near onnxruntime comes to torch, and its time beside torch's, on the processor.

    python benchmarks/export_speed.py --step export --folder FOLDER [--networks NAME ...]
    python benchmarks/export_speed.py --step time --folder FOLDER [--threads 2] [--seconds 10]

The first step writes and checks the ONNX files (any other work may run beside it); the second times them, torch and
onnxruntime in turn, on a quiet machine, and writes benchmarks/results/export.json and export.md (table: these without
times). Networks have random weights; norms over heads have statistics as training leaves them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from torch import nn

import deepvit
from deepvit import cures
from deepvit.benchmarking.measure import against, in_turn, machine
from deepvit.data import InputSpec
from deepvit.files import write_atomic, write_json
from deepvit.tasks import Segmentation

SCENE = {
    "class_names": [f"class {i}" for i in range(19)], "palette": [[i, i, i] for i in range(19)], "ignore_index": 255,
    "head": "upernet", "channels": 128, "decoder_dropout": 0.1, "aux": False, "short_side": None,
}  # fmt: skip
RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 8)


def cured(name: str, blocks: str) -> nn.Module:
    """vit_small with a cure in its last blocks."""
    return cures.apply(
        timm.create_model("vit_small_patch16_224", dynamic_img_size=True), name, blocks=blocks, init="paper"
    )


def segmenter() -> nn.Module:
    """UPerNet on vit_small, images of any size."""
    problem = Segmentation(SCENE)
    backbone = timm.create_model(
        "vit_small_patch16_224", num_classes=0, dynamic_img_size=True, dynamic_img_pad=True
    )
    return problem.deployed(problem.network(backbone, InputSpec(224)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vit_small": lambda: timm.create_model("vit_small_patch16_224", dynamic_img_size=True),
    "deepvit_s": lambda: timm.create_model("deepvit_s_patch16_224"),
    "deepvit_d16": lambda: timm.create_model("deepvit_d16_patch16_224", dynamic_img_size=True),
    "vit_small, reattention in the last 6": lambda: cured("reattention", "last:6"),
    "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "swin_tiny, any size": lambda: timm.create_model("swin_tiny_patch4_window7_224", strict_img_size=False),
    "vit_small, UPerNet": segmenter,
}


def build(name: str) -> nn.Module:
    """A network, the same whenever it is asked for."""
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    with torch.no_grad():  # a fresh norm over heads has no statistics yet
        for _ in range(3):
            network(torch.randn(2, 3, 224, 224))
    return network.eval()


def place(folder: Path, name: str) -> Path:
    """The file of a network."""
    return folder / f"{'-'.join(name.replace(',', '').split())}.onnx"


def export(folder: Path, names: list[str]) -> None:
    """Write and check the files; one that is there is left alone."""
    for name in names:
        path = place(folder, name)
        if path.exists():
            continue
        network = build(name)
        torch.save(network.state_dict(), path.with_suffix(".pt"))
        made = deepvit.export(network, out=str(path))
        facts = {
            "size": "fixed" if made.step is None else f"multiples of {made.step}",
            "cases": [dataclasses.asdict(case) for case in made.cases],
            "megabytes": path.stat().st_size / 1e6,
            "seconds": made.seconds,
        }
        write_json(path.with_suffix(".facts.json"), facts)
        print(name, facts, flush=True)


def timed(folder: Path, name: str, threads: int, seconds: float) -> dict[str, Any]:
    """Seconds of a pass by torch and by onnxruntime, in turn."""
    network = NETWORKS[name]().eval()
    path = place(folder, name)
    network.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = {}
    for batch in BATCHES:
        images = torch.randn(batch, 3, 224, 224)
        array = images.numpy()
        with torch.inference_mode():
            sides = {
                "torch": partial(network, images),
                "onnxruntime": partial(session.run, None, {"images": array}),
            }
            found[str(batch)] = against(in_turn(sides, 30, 2, seconds), "torch")
    return found


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "# Exported networks",
        "",
        f"{result['hardware']['processor']}, {result['threads']} threads, float32, 224×224; torch "
        f"{result['versions']['torch']} (eager), onnxruntime {onnxruntime.__version__}.",
        f"Load of the machine when it began: {result['load']:.1f} on {result['hardware']['cores']} cores"
        + (
            ": not quiet, so that only the ratios, taken in turn, say something."
            if result["load"] > 1
            else "."
        ),
        "",
        "| network | image size | largest difference (batches 1 and 3) | batch | torch ms | onnxruntime ms | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["networks"].items():
        worst = max(row["cases"], key=lambda case: case["difference"])
        said = f"| {name} | {row['size']} | {worst['difference']:.1e} of {worst['largest']:.2g} |"
        if not row["times"]:
            lines.append(f"{said} not timed | | | |")
        for batch, sides in row["times"].items():
            torch_ms, ort_ms = (1e3 * sides[side]["median_s"] for side in ("torch", "onnxruntime"))
            lines.append(
                f"{said} {batch} | {torch_ms:.1f} | {ort_ms:.1f} | {sides['onnxruntime']['ratio']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", choices=("export", "time", "table"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if options.step == "export":
        export(options.folder, options.networks)
        return
    # Whoever reads the figures should know whether the machine was quiet: 2.0 is all of two cores at work.
    result: dict[str, Any] = {
        **machine(),
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "networks": {},
    }
    for name in options.networks:
        if not place(options.folder, name).with_suffix(".facts.json").exists():
            continue  # not exported yet
        facts = json.loads(place(options.folder, name).with_suffix(".facts.json").read_text())
        result["networks"][name] = {
            **facts,
            "times": timed(options.folder, name, options.threads, options.seconds),
        }
        print(
            name,
            {b: f"{v['onnxruntime']['ratio']:.2f}" for b, v in result["networks"][name]["times"].items()},
            flush=True,
        )
    write_json(RESULTS / "export.json", result)
    write_atomic(RESULTS / "export.md", table(result))


if __name__ == "__main__":
    main()
