"""What the guards cost: processor time of a training step with them against without, A B A B in one process.

    python benchmarks/guards.py [STEPS]

Without: neither the loss nor the gradient is looked at. Prints the medians and their ratio.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from typing import Any

import deepvit
from deepvit.training.guards import Guard
from deepvit.training.trainee import Trainee


def main(steps: int) -> None:
    """Train ``steps`` steps, every other one without guards, and print what each kind took."""
    times: dict[bool, list[float]] = {True: [], False: []}
    look, check, start = Guard.look, Trainee.check_finite, Trainee.on_train_batch_start
    state: dict[str, Any] = {"guarded": True, "since": None}

    def on_train_batch_start(self: Trainee, batch: Any, index: int) -> None:
        now = time.process_time()
        if state["since"] is not None and self.global_step > 8:
            times[state["guarded"]].append(now - state["since"])
        state["guarded"] = not state["guarded"]
        Guard.look = look if state["guarded"] else lambda *_: False  # type: ignore[method-assign]
        Trainee.check_finite = check if state["guarded"] else lambda *_: None  # type: ignore[method-assign]
        start(self, batch, index)
        state["since"] = time.process_time()

    Trainee.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        deepvit.train(
            model="vit_tiny_patch16_224", model_args={"depth": 12, "img_size": 32, "patch_size": 4}, data="digits",
            batch_size=16, max_train_images=16 * steps, max_val_images=16, epochs=1, diagnose_images=0, devices="cpu",
            progress=False, precision="32", out=f"{out}/run",
        )  # fmt: skip
    with_, without = statistics.median(times[True]), statistics.median(times[False])
    print(f"with guards {1e3 * with_:.2f} ms, without {1e3 * without:.2f} ms: ratio {with_ / without:.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
