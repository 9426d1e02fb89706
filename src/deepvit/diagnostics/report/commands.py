"""The cures of a verdict with the command that applies each."""

from __future__ import annotations

import shlex

from deepvit.diagnostics.results import Cure, Measurements

LOSSES = frozenset({"patch_cosine", "patch_contrastive", "patch_mixing", "attention_cosine"})
"""Cures that are losses: they change the objective of ``deepvit train``, not the network."""


def cure_rows(result: Measurements) -> list[dict[str, str]]:
    """Name, place in words, reason and command of every cure, in the verdict's order."""
    return [
        {
            "name": cure.name,
            "where": _where(cure, result),
            "why": cure.why,
            "command": command(cure, result.name),
        }
        for cure in result.verdict.cures
    ]


def command(cure: Cure, model: str) -> str:
    """The ``deepvit train`` command that trains ``model`` with this cure; DATA is left to the reader."""
    if cure.name in LOSSES:
        change = f"--losses.{cure.name} 1"
    else:
        place = "" if cure.blocks == "all" else f" --cure_blocks {shlex.quote(cure.blocks)}"
        change = f"--cures {shlex.quote(cure.name)}{place}"
    return f"deepvit train --model {shlex.quote(model)} \\\n  {change} \\\n  --data DATA"


def _where(cure: Cure, result: Measurements) -> str:
    if cure.name in LOSSES:
        return "the objective"
    if cure.blocks in ("all", f"0-{len(result.blocks) - 1}"):
        return "every block"
    if cure.blocks.isdigit():
        return f"block {cure.blocks}"
    return "blocks " + cure.blocks.replace(",", ", ").replace("-", " to ").replace("last:", "last ").replace(
        "first:", "first "
    )
