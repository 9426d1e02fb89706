"""Choosing images: a stratified validation part, and evenly spaced subsets."""

from __future__ import annotations

import torch

from deepvit.errors import UserError


def stratified_split(
    targets: torch.Tensor, fraction: float, *, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of the training and of the validation images, each ascending.

    Of a class with n ≥ 2 images, round(fraction · n), but at least one and at most n - 1, validate; a class
    of one image only trains. Raises ``UserError`` when ``fraction`` is not in (0, 1).
    """
    if not 0.0 < fraction < 1.0:
        raise UserError(f"val_fraction={fraction} must lie between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    train, val = [], []
    for label in targets.unique().tolist():
        members = (targets == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        held = min(max(1, round(fraction * len(members))), len(members) - 1)
        val.append(members[:held])
        train.append(members[held:])
    return torch.cat(train).sort().values, torch.cat(val).sort().values


def evenly_spaced(count: int, limit: int | None) -> torch.Tensor | None:
    """Numbers of ``limit`` images spread evenly over ``count``; None when all are wanted.

    Sources are ordered by class, so an even spread keeps the classes in proportion.
    """
    if limit is None or limit >= count:
        return None
    if limit < 1:
        raise UserError(f"an image limit of {limit} leaves nothing; give at least 1")
    return (torch.arange(limit, dtype=torch.float64) * (count / limit)).long()
