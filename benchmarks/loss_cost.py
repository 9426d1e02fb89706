"""What each diversity loss adds to a training step: a 12-block ViT with 197 tokens, with and without it, in turn.

    python benchmarks/loss_cost.py [--model vit_small_patch16_224] [--images 8] [--rounds 15]

All sides share one network, so that its memory and its gradients are the same; a step is forward, backward and
AdamW. The quartiles of the ratio tell the noise: it is often larger than a loss.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch

from deepvit.benchmarking.measure import against, in_turn, machine
from deepvit.files import write_json
from deepvit.losses import LOSSES, PatchMix
from deepvit.tasks.classification import criterion
from deepvit.training.objective import Objective

NONE = "no loss"
CLASSES = 1000


def sides(name: str, images: int) -> dict[str, Callable[[], Any]]:
    """A training step without a loss, once more without (the noise), and with each."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).train()
    size = model.patch_embed.img_size[0]
    x, y = torch.randn(images, 3, size, size), torch.randint(CLASSES, (images,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step_with(loss: str | None) -> Callable[[], Any]:
        mix = PatchMix(model.patch_embed.patch_size[0], CLASSES) if loss == "patch_mixing" else None
        weights = {} if loss is None else {loss: 1.0}
        objective = Objective(model, criterion(0.0), classes=CLASSES, weights=weights, mix=mix)

        def step() -> None:
            total, _ = objective(model, x, y)
            total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    named = {loss: step_with(loss) for loss in LOSSES}
    return {NONE: step_with(None), f"{NONE}, again": step_with(None), **named}


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default="benchmarks/results/loss_cost.json")
    options = parser.parse_args()
    found = against(in_turn(sides(options.model, options.images), options.rounds, warmup=2), NONE)
    for name, side in found.items():
        spread = f"({side['ratio_low']:.3f} to {side['ratio_high']:.3f})"
        print(f"{name:<18} {side['median_s']:.3f} s a step, ratio {side['ratio']:.3f} {spread}")
    settings = {"model": options.model, "images": options.images, "rounds": options.rounds}
    print(write_json(options.out, {"floor": NONE, **machine(), "settings": settings, "sides": found}))


if __name__ == "__main__":
    main()
