"""Suite ``engine``: ``deepvit train`` against a minimal hand-written loop over the same model, data and augmentation."""

from __future__ import annotations

import tarfile
import tempfile
import time
import warnings
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from deepvit.benchmarking.measure import isolated, machine, resident
from deepvit.benchmarking.timm_script import TIMM, check_script, timm_loop
from deepvit.training.config import TrainConfig

BARE = "bare loop"
ENGINE = "deepvit train"


def run_engine_suite(
    images: int = 2048,
    batch_size: int = 64,
    model: str = "deepvit_tiny_d16_patch4_32",
    model_args: dict[str, Any] | None = None,
    rounds: int = 3,
    epochs: int = 3,
    timm_script: str | None = None,
) -> dict[str, Any]:
    """Steps per second and memory of both loops, each in a fresh process, in turn A B A B; start-up is left out.

    The data are CIFAR-10-sized JPEG files in a tar, made here; augmentation is the default for photographs of that
    size. Steps per second are those of all epochs but the first.

    Args:
        images: training images.
        batch_size: images a step.
        model: timm name.
        model_args: its arguments.
        rounds: how often each loop is run.
        epochs: epochs a run, the first of which warms up.
        timm_script: path of timm's ``train.py``, which then runs in turn with them.

    Raises:
        UserError: ``timm_script`` is not that, or fails.
    """
    if timm_script is not None:
        check_script(timm_script)
    with tempfile.TemporaryDirectory() as folder:
        archive = make_photographs(Path(folder) / "photographs.tar", images)
        options: dict[str, Any] = {
            "model": model, "model_args": model_args or {}, "data": str(archive), "epochs": epochs,
            "batch_size": batch_size, "diagnose_images": 0, "progress": False, "lr": 1e-3,
        }  # fmt: skip
        found: dict[str, list[dict[str, float]]] = {
            BARE: [],
            ENGINE: [],
            **({TIMM: []} if timm_script else {}),
        }
        for number in range(rounds):
            found[BARE].append(isolated(bare_loop, options))
            found[ENGINE].append(isolated(engine_loop, {**options, "out": f"{folder}/run{number}"}))
            if timm_script:
                found[TIMM].append(timm_loop(options, str(Path(timm_script).resolve())))
    ratios = faster(found[ENGINE], found[BARE])
    sides = {
        name: {
            "steps_per_second": median(r["steps_per_second"] for r in runs),
            "slowest": min(r["steps_per_second"] for r in runs),
            "fastest": max(r["steps_per_second"] for r in runs),
            "peak_bytes": max((r["peak_bytes"] for r in runs if "peak_bytes" in r), default=None),
        }
        for name, runs in found.items()
    }
    return {
        "suite": "engine",
        "floor": BARE,
        **machine(),
        "settings": {
            "images": images,
            "batch_size": batch_size,
            "model": model,
            "rounds": rounds,
            "epochs": epochs,
        },
        "sides": sides,
        "ratio": median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "timm_ratios": faster(found[ENGINE], found[TIMM]) if timm_script else None,
    }


def faster(these: list[dict[str, float]], those: list[dict[str, float]]) -> list[float]:
    """Steps a second of the one over those of the other, round by round."""
    return [a["steps_per_second"] / b["steps_per_second"] for a, b in zip(these, those, strict=True)]


def make_photographs(path: Path, count: int) -> Path:
    """A tar of two class folders in train/ and val/ with smooth random 32 × 32 JPEG images."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for part, number in (("train", count), ("val", 64)):
            for i in range(number):
                coarse = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                data = BytesIO()
                Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(
                    data, "JPEG", quality=75
                )
                entry = tarfile.TarInfo(f"{part}/class{i % 2}/{i}.jpg")
                entry.size = data.tell()
                data.seek(0)
                tar.addfile(entry, data)
    return path


def engine_loop(options: dict[str, Any]) -> dict[str, float]:
    """A real run of ``deepvit train``: its own account of steps and seconds."""
    from deepvit.experiments.rows import curves_of
    from deepvit.training.run import train

    warnings.filterwarnings(
        "ignore", module=r"lightning(\..*)?$"
    )  # notices about itself, as on the command line
    run = train(**options)
    seconds = [value for _, value in curves_of(run.path)["seconds"][1:]]
    steps = len(seconds) * (run.result["steps"] // run.result["epochs"])
    return {"steps_per_second": steps / sum(seconds), "peak_bytes": float(resident("VmHWM"))}


def bare_loop(options: dict[str, Any]) -> dict[str, float]:
    """What a person would write by hand: the same loader, model, loss and optimizer, and nothing else."""
    from deepvit.data import Loaders
    from deepvit.tasks import Classification
    from deepvit.training.build import build_model, native_size

    config = TrainConfig(**options)
    torch.manual_seed(0)
    data = Classification.open(config.data.spec, config.data.source)
    problem = Classification(Classification.facts_of(data, None))
    model, card = build_model(config, problem, native_size(data))
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)
    images = Loaders(data, input=card.input, batch_size=config.optim.batch_size, progress=False)
    images.setup("fit")
    loader = images.train_dataloader()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=config.optim.weight_decay, fused=True
    )
    seconds, steps = 0.0, 0
    for epoch in range(config.optim.epochs):
        before = time.perf_counter()
        for x, y in loader:
            logits = model(x.to(device, non_blocking=True))
            loss = F.cross_entropy(
                logits, y.to(device, non_blocking=True), label_smoothing=images.label_smoothing
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            steps += epoch > 0
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds += (time.perf_counter() - before) * (epoch > 0)
    return {"steps_per_second": steps / seconds, "peak_bytes": float(resident("VmHWM"))}
