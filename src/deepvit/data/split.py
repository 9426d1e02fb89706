"""Choosing images: a stratified validation part, and evenly spaced subsets."""

from __future__ import annotations

import torch

from deepvit.errors import UserError

DEFAULT_VAL_FRACTION = 0.2


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


def hold_out(
    targets: torch.Tensor, fraction: float | None, seed: int | None
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """``stratified_split`` by the options of a source (None: 0.2, seed 0), and a sentence that says so."""
    fraction = DEFAULT_VAL_FRACTION if fraction is None else fraction
    seed = 0 if seed is None else seed
    if seed < 0:
        raise UserError(f"split_seed={seed} must not be negative")
    train, val = stratified_split(targets, fraction, seed=seed)
    return train, val, f"stratified split, {fraction:.0%} of each class for validation, seed {seed}"


def evenly_spaced(count: int, limit: int | None) -> torch.Tensor | None:
    """Numbers of ``limit`` images spread evenly over ``count``; None when all are wanted.

    Sources are ordered by class, so an even spread keeps the classes in proportion.
    """
    if limit is None or limit >= count:
        return None
    if limit < 1:
        raise UserError(f"an image limit of {limit} leaves nothing; give at least 1")
    return (torch.arange(limit, dtype=torch.float64) * (count / limit)).long()
