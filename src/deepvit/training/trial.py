"""One image through a run's network before anything is written: what would fail in the first step is told in one line."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from deepvit.errors import UserError
from deepvit.runs.card import ModelCard
from deepvit.training.build import chosen_for
from deepvit.training.config import TrainConfig
from deepvit.training.objective import Objective, as_typed

# What networks raise for images, or sizes of patches, that they were not written for.
FAILURES = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, IndexError, KeyError)


def try_once(network: nn.Module, objective: Objective, card: ModelCard, config: TrainConfig) -> None:
    """Run the network on one black image as it will be run, with the diversity losses watching it.

    Nothing of it remains: random numbers go on where they were, statistics of batch norms and the modes of all modules are
    as before.

    Raises:
        UserError: a network that does not take such images, or outputs that the losses cannot read.
    """
    modes = {module: module.training for module in network.modules()}
    losses = objective.diversity
    place = next(network.parameters()).device
    watching = contextlib.nullcontext() if losses is None else losses.watch()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                with watching:
                    network.eval()(torch.zeros(1, 3, *card.input.hw, device=place))
            except UserError:
                raise
            except FAILURES as error:
                raise UserError(_untaken(card, config, error)) from error
            if losses is not None:
                losses.terms(torch.zeros(1, dtype=torch.long, device=place))
    except (UserError, *FAILURES) as error:
        if losses is None or isinstance(error.__cause__, FAILURES):
            raise
        names = ", ".join(losses.weights)
        raise UserError(
            f"model {card.arch} does not give what --losses ({names}) read: {as_typed(_first(error))}; or take another "
            "--model, or leave these losses out"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


def _untaken(card: ModelCard, config: TrainConfig, error: Exception) -> str:
    height, width = card.input.hw
    chosen = chosen_for(card.model_args, config.model)
    way = chosen or "give another --model.img_size or take another --model"
    return f"model {card.arch} cannot run on images of {height}×{width} ({_first(error)}): {way}"


def _first(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__
