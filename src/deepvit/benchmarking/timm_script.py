"""timm's own ``train.py`` as a side of suite ``engine``: the same model, images, batch and policy, by its command line."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import torch

from deepvit.data.augmentation import AugmentConfig, resolve
from deepvit.errors import UserError
from deepvit.training.config import TrainConfig

TIMM = "timm train.py"
_LINE = re.compile(r"Train: (\d+) \[ *\d+/\d+ \( *(\d+)%\)\].*?\( *[\d.]+s, *([\d.]+)/s\)")
"""Its line of progress: epoch, percent done, and images a second on average over the epoch."""


def check_script(path: str) -> Path:
    """The script's path. Raises UserError where there is no such file, or it is not timm's."""
    script = Path(path)
    if not script.is_file():
        raise UserError(f"{path} is no file: timm's train.py lies at the top of its repository")
    if "create_model" not in script.read_text(errors="replace"):
        raise UserError(f"{path} is not timm's train.py (it makes no model by timm)")
    return script


def timm_loop(options: dict[str, Any], script: str, side: int = 32, workers: int = 2) -> dict[str, float]:
    """Run the script on the images of ``options['data']`` (a tar of class folders, unpacked beside it).

    Args:
        options: those of :class:`~deepvit.training.config.TrainConfig`, as the other loops take them.
        script: path of timm's train.py.
        side: height and width of the images in pixels.
        workers: its loader's processes.

    Returns:
        ``steps_per_second`` over all epochs but the first, by the script's own account, in which loading counts. Its
        memory is not measured: it lies in several processes.

    Raises:
        UserError: the script fails, or says no rate.
    """
    config = TrainConfig(**options)
    archive = Path(str(config.data.spec))
    folder = archive.with_suffix("")
    if not folder.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    words = [sys.executable, script, *arguments(config, folder, side), "--workers", str(workers)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder.parent)
    told = done.stdout + done.stderr
    if done.returncode:
        raise UserError(
            f"{script} ended with {done.returncode}: {(told.strip().splitlines() or ['no word'])[-1]}"
        )
    return {"steps_per_second": rate_of(told) / config.optim.batch_size}


def arguments(config: TrainConfig, folder: Path, side: int) -> list[str]:
    """The command line that asks timm's script for what ``deepvit train`` does by default with such images.

    A shift (crop_padding) is what timm has no option for: a random resized crop of 0.8 to 1 of the area stands for it.
    """
    augment = resolve(AugmentConfig(), side=side, mirror=True)
    classes = sum(1 for each in (folder / "train").iterdir() if each.is_dir())
    words = {
        "data-dir": folder, "train-split": "train", "val-split": "val", "num-classes": classes,
        "model": config.model.name, "device-modules": "deepvit",
        "device": "cuda" if torch.cuda.is_available() else "cpu", "input-size": f"3 {side} {side}",
        "batch-size": config.optim.batch_size, "epochs": config.optim.epochs, "warmup-epochs": 0, "opt": "adamw",
        "lr": 1e-3, "weight-decay": config.optim.weight_decay, "clip-grad": config.optim.clip_grad,
        "scale": "0.8 1.0", "hflip": augment.hflip, "aa": augment.randaugment, "color-jitter": augment.color_jitter,
        "reprob": augment.random_erasing, "remode": augment.erasing_mode, "smoothing": augment.label_smoothing,
        "checkpoint-hist": 1, "log-interval": 10, "output": folder.parent / "timm",
    }  # fmt: skip
    found = [part for name, value in words.items() for part in (f"--{name}", *str(value).split())]
    if config.model.args:
        found += ["--model-kwargs", *(f"{name}={value}" for name, value in config.model.args.items())]
    return found


def rate_of(log: str) -> float:
    """Images a second over all epochs but the first, from the last line of each epoch."""
    epochs = {int(epoch): float(rate) for epoch, _, rate in _LINE.findall(log)}
    counted = [rate for epoch, rate in epochs.items() if epoch > 0]
    if not counted:
        raise UserError("timm's train.py says no images a second after its first epoch")
    return len(counted) / sum(1 / rate for rate in counted)
