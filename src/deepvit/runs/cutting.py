"""A finished run without some of its blocks, as a run of its own, and what that saves."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from deepvit import cures
from deepvit.errors import UserError
from deepvit.files import write_atomic
from deepvit.runs.card import load_deployed, save_deployed
from deepvit.runs.folder import stored_options


@dataclass(frozen=True)
class Cost:
    """What a network costs: parameters, and seconds an image (median of several passes)."""

    parameters: int
    seconds_per_image: float


def cut_run(
    run: str | Path, blocks: str | int | Sequence[int], out: str | Path, *, batch_size: int = 32
) -> dict[str, Cost]:
    """Write the deployed network of a run without these blocks into the folder ``out``; nothing is trained.

    ``deepvit evaluate``, ``diagnose`` and ``predict`` take the folder as any run's; ``train --weights`` goes on from it.

    Args:
        run: folder of a finished run.
        blocks: as ``--cure_blocks`` takes them ("11-15"), by their numbers in that network.
        out: a folder that is not there yet, or empty.
        batch_size: images in a pass that is timed.

    Returns:
        ``before`` and ``after``: parameters and seconds an image on this machine, timed in turn.

    Raises:
        UserError: no finished run, blocks that cannot go, or a folder with something in it.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already: give another folder")
    network, card = load_deployed(run)
    shorter = copy.deepcopy(network)
    backbone = cures.apply(card.problem.backbone(shorter), "cut", blocks=blocks)
    record = list(backbone.deepvit_cures)  # type: ignore[arg-type]
    height, width = card.input.hw
    images = torch.randn(batch_size, 3, height, width)
    before, after = cost(network, shorter, images=images)
    folder.mkdir(parents=True, exist_ok=True)
    save_deployed(folder, shorter, dataclasses.replace(card, cures=record))
    if (
        Path(run) / "config.yaml"
    ).exists():  # on what it was trained, and how this network is made of that run
        changes = {"weights": str(run), "cures": _asked(record[-1]), **_NO_OTHER_CURES}
        text = yaml.safe_dump({**stored_options(run), **changes}, sort_keys=False, allow_unicode=True)
        write_atomic(folder / "config.yaml", text)
    return {"before": before, "after": after}


_NO_OTHER_CURES: dict[str, Any] = {
    "cure_blocks": "all",
    "cure_init": "auto",
    "cure_args": {},
    "cure_report": None,
}
"""Options of the cures that the run has already: they come with its weights."""


def _asked(entry: Mapping[str, Any]) -> str:
    """A cure of a record in the syntax of ``--cures``."""
    return f"{entry['name']}@{','.join(map(str, entry['blocks']))}"


@torch.no_grad()
def cost(*networks: nn.Module, images: Tensor, repeats: int = 7) -> list[Cost]:
    """The cost of several networks on the same images, timed in turn (A B A B) so that a busy machine is fair to all."""
    times: list[list[float]] = [[] for _ in networks]
    for network in networks:
        network.eval()(images)
    for _ in range(repeats):
        for network, own in zip(networks, times, strict=True):
            started = time.perf_counter()
            network(images)
            own.append((time.perf_counter() - started) / len(images))
    return [
        Cost(sum(p.numel() for p in network.parameters()), statistics.median(own))
        for network, own in zip(networks, times, strict=True)
    ]
