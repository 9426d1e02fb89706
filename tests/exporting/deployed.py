"""Run folders with small networks in them, as if they had been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from deepvit import cures, models
from deepvit.data import InputSpec
from deepvit.runs import ModelCard
from deepvit.runs.card import save_deployed
from deepvit.tasks import find

CLASSES = ["ash", "birch", "cedar", "elm", "fir"]
SCENE = {
    "class_names": ["ground", "leaf", "stem"], "palette": [[0, 0, 0], [0, 255, 0], [255, 0, 0]], "ignore_index": 255,
    "head": "upernet", "channels": 12, "decoder_dropout": 0.1, "aux": True, "short_side": None,
}  # fmt: skip


def stirred(network: torch.nn.Module, size: tuple[int, int]) -> torch.nn.Module:
    """Parameters at no special value, and statistics of norms as training leaves them."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        network.train()
        for _ in range(20):
            network(torch.randn(4, 3, *size))
    return network.eval()


def run_folder(
    folder: Path,
    arch: str,
    size: int | tuple[int, int],
    cure: str = "",
    facts: dict[str, Any] | None = None,
    **args: Any,
) -> Path:
    """A run folder as training leaves it: card and weights."""
    task = "segmentation" if facts else "classification"
    facts = {"class_names": CLASSES} if facts is None else facts
    card = ModelCard(arch, args, InputSpec(size, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)), task, facts)
    problem = find(task)(facts)
    backbone = models.create(arch, num_classes=problem.width, **args)
    if cure:
        cures.apply(backbone, cure, init="paper")
        card.cures = list(backbone.deepvit_cures)
    network = stirred(problem.network(backbone, card.input), card.input.hw)
    folder.mkdir(parents=True, exist_ok=True)
    save_deployed(folder, network, card)
    return folder


def photographs(folder: Path) -> list[Path]:
    """Photographs that come with scikit-image, of odd shapes, and one that is turned and one with a transparent half."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    astronaut, coffee = Image.fromarray(data.astronaut()), Image.fromarray(data.coffee())
    files = [folder / name for name in ("wide.png", "tall.png", "turned.jpg", "glass.png", "small.png")]
    coffee.resize((150, 101)).save(files[0])
    astronaut.crop((100, 0, 201, 163)).save(files[1])
    exif = Image.Exif()
    exif[0x0112] = 6
    coffee.resize((90, 60)).save(files[2], exif=exif)
    layer = astronaut.resize((64, 64)).convert("RGBA")
    layer.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))))
    layer.save(files[3])
    astronaut.resize((20, 23)).save(files[4])
    return files
