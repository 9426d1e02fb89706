"""What the guards cost: processor time of a training step with them against without, in turn, in the same run.

    python benchmarks/guards.py [--steps 240] [--out FILE]

With: the loss and the gradient's norm are looked at before each step. Without: neither, and without clipping no norm is
computed. A third kind, without once more, tells the noise. Prints the medians and ratios of steps next to one another.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

import deepvit
from deepvit.benchmarking.measure import machine
from deepvit.files import write_json
from deepvit.training.trainee import Trainee

KINDS = ("without", "with", "without, again")
RUN = {
    "model": "vit_tiny_patch16_224", "model_args": {"depth": 12, "img_size": 32, "patch_size": 4}, "data": "digits",
    "batch_size": 16, "max_val_images": 16, "diagnose_images": 0, "devices": "cpu", "precision": "32", "progress": False,
}  # fmt: skip


def times(steps: int, clip: float) -> dict[str, list[float]]:
    """Seconds of processor time of each step of a run, by kind; the kinds take turns."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    start, clipping, check = (
        Trainee.on_train_batch_start, Trainee.configure_gradient_clipping, Trainee.check_finite,
    )  # fmt: skip
    number, since = 0, 0.0

    def unguarded(self: Trainee, optimizer: Any, *_: Any, **__: Any) -> None:
        if clip:
            clipped(optimizer, clip)

    def on_train_batch_start(self: Trainee, batch: Any, index: int) -> None:
        nonlocal number, since
        if number > 4 * len(KINDS):  # the first steps are slower
            found[KINDS[(number - 1) % len(KINDS)]].append(time.process_time() - since)
        guarded = KINDS[number % len(KINDS)] == "with"
        Trainee.configure_gradient_clipping = clipping if guarded else unguarded  # type: ignore[method-assign]
        Trainee.check_finite = check if guarded else lambda *_: None  # type: ignore[method-assign]
        number += 1
        start(self, batch, index)
        since = time.process_time()

    Trainee.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as out:
            epochs = -(-steps // 80)  # the set of digits has some 1,400 training images
            deepvit.train(**RUN, max_train_images=16 * 80, epochs=epochs, clip_grad=clip, out=f"{out}/run")
    finally:
        Trainee.on_train_batch_start = start  # type: ignore[method-assign]
        Trainee.configure_gradient_clipping = clipping  # type: ignore[method-assign]
        Trainee.check_finite = check  # type: ignore[method-assign]
    return found


def clipped(optimizer: Any, most: float) -> None:
    """What clipping alone does."""
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], most)


def ratios(found: dict[str, list[float]]) -> dict[str, Any]:
    """Median seconds of each kind, and median and quartiles of its ratio to the step without guards beside it."""
    result: dict[str, Any] = {}
    for kind, seconds in found.items():
        pairs = [a / b for a, b in zip(seconds, found["without"], strict=False)]
        low, middle, high = statistics.quantiles(pairs, n=4)
        result[kind] = {
            "median_s": statistics.median(seconds), "steps": len(seconds), "ratio": middle, "ratio_low": low,
            "ratio_high": high,
        }  # fmt: skip
    return result


def main() -> None:
    """Measure with and without clipping, print, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--out", default="benchmarks/results/guards.json")
    options = parser.parse_args()
    sides = {}
    for clip in (1.0, 0.0):
        sides[f"clip_grad {clip:g}"] = ratios(times(options.steps, clip))
        for kind, side in sides[f"clip_grad {clip:g}"].items():
            spread = f"({side['ratio_low']:.4f} to {side['ratio_high']:.4f})"
            print(
                f"clip_grad {clip:g}, {kind:<15} {1e3 * side['median_s']:.2f} ms, ratio {side['ratio']:.4f} {spread}"
            )
    settings = {name: value for name, value in RUN.items() if name not in ("progress", "devices")}
    print(write_json(options.out, {"floor": "without", **machine(), "settings": settings, "sides": sides}))


if __name__ == "__main__":
    main()
