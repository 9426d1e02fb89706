"""Memory of one training step of a segmentation network: Re-attention by `auto` and by `reference`, and plain attention.

    python benchmarks/segmentation_memory.py [--size 512] [--images 2] [--channels 128] [--checkpointing]

By default 16 blocks of 384 channels (DeepViT-S), read by UPerNet of 128, at 512 × 512 pixels: 1,025 tokens. Each side is
built and trained for one step (forward, loss, backward, AdamW) in a process of its own, after a step of one small image that
makes gradients and moments: what is measured beyond what was held before are activations and what is computed on the way.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from deepvit.benchmarking.measure import isolated, machine, peak_extra
from deepvit.files import write_atomic, write_json
from deepvit.layers import ReAttention
from deepvit.tasks import Segmentation
from deepvit.tasks.segmentation.loss import criterion
from deepvit.training.build import build_model
from deepvit.training.config import TrainConfig

PLAIN, AUTO, REFERENCE = "plain attention", "Re-attention, auto", "Re-attention, reference"
CLASSES, VOID = 19, 255
FACTS = {
    "class_names": [f"class {i}" for i in range(CLASSES)], "palette": [[i, i, i] for i in range(CLASSES)],
    "ignore_index": VOID, "head": "upernet", "decoder_dropout": 0.1, "aux": True, "short_side": None,
}  # fmt: skip


def measured(
    side: str, model: str, size: int, images: int, channels: int, checkpointing: bool
) -> dict[str, Any]:
    """Bytes and seconds of one step of one side."""
    torch.manual_seed(0)
    args = {"reattention_blocks": "none" if side == PLAIN else "all"}
    config = TrainConfig(
        task="segmentation",
        model=model,
        model_args=args,
        grad_checkpointing=checkpointing,
        scene={"crop_size": size},
    )
    network, _ = build_model(config, Segmentation(FACTS | {"channels": channels}), None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device).train()
    if checkpointing:
        network.backbone.set_grad_checkpointing(True)
    blocks = [module for module in network.modules() if isinstance(module, ReAttention)]
    for module in blocks:
        module.backend = "reference" if side == REFERENCE else "auto"
    optimizer, loss = torch.optim.AdamW(network.parameters(), 1e-5), criterion(None, 0.4, VOID)

    def step(count: int, side_: int) -> None:
        pictures = torch.randn(count, 3, side_, side_, device=device)
        truth = torch.randint(CLASSES, (count, side_, side_), device=device)
        sum(loss(network(pictures), truth).values()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    started = [0.0]

    def large() -> None:
        started[0] = time.perf_counter()
        step(images, size)

    extra = peak_extra(large, lambda: step(1, 64))
    return {
        "reattention_blocks": len(blocks),
        "parameters": sum(p.numel() for p in network.parameters()),
        "peak_bytes": extra,
        "seconds": time.perf_counter() - started[0],
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings, sides = result["settings"], result["sides"]
    hardware, torch_version = result["hardware"], result["versions"]["torch"]
    where = ", ".join(hardware["accelerators"]) or f"{hardware['processor']}, {hardware['threads']} threads"
    kept = ", gradient checkpointing" if settings["checkpointing"] else ""
    lines = [
        "# Memory of one training step of a segmentation network",
        "",
        f"{where}; torch {torch_version}. {settings['model']} with UPerNet of {settings['channels']} channels, "
        f"{settings['size']} × {settings['size']} pixels, "
        f"{settings['images']} images a step, float32{kept}. Beyond weights, gradients and moments.",
        "",
        "| attention | peak MB | to plain |",
        "|---|---:|---:|",
    ]
    floor = sides[PLAIN]["peak_bytes"]
    for name, side in sides.items():
        ratio = side["peak_bytes"] / floor
        lines.append(f"| {name} | {side['peak_bytes'] / 1e6:.0f} | {ratio:.2f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure all sides, print the table, write JSON and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deepvit_s_patch16_224")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--channels", type=int, default=128, help="of UPerNet; 512 in the papers")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--out", default="benchmarks/results/segmentation_memory.json")
    options = parser.parse_args()
    settings = {
        key: getattr(options, key) for key in ("model", "size", "images", "channels", "checkpointing")
    }
    sides: dict[str, Any] = {}
    for side in (PLAIN, AUTO, REFERENCE):
        sides[side] = isolated(measured, side, *settings.values())
        print(f"{side}: {sides[side]}", flush=True)
    result = {**machine(), "settings": settings, "sides": sides}
    text = table(result)
    print(text)
    write_json(options.out, result)
    write_atomic(Path(options.out).with_suffix(".md"), text.encode())


if __name__ == "__main__":
    main()
