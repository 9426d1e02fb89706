"""From options to a network that fits the data: sizes for small images, weights, cures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from deepvit import cures, models
from deepvit.data import ImageSet
from deepvit.data.augmentation import SMALL_SIDE
from deepvit.errors import UserError
from deepvit.layers.entries import entries, set_entries
from deepvit.models.arguments import accepted
from deepvit.runs.card import ModelCard, load_deployed, read_card
from deepvit.runs.inputs import input_of
from deepvit.tasks import Task
from deepvit.training.config import TrainConfig
from deepvit.training.groups import CureOptions, ModelOptions


def sized_for(options: ModelOptions, native_size: int | None, cells: int = 8) -> dict[str, Any]:
    """The model's arguments with ``img_size`` and ``patch_size`` for small images, unless the user gave them.

    Images of at most 96 pixels are taken at their own size, with patches that give a grid of about 8 × 8 (4 × 4
    for images of 8 pixels): a model made for 224 pixels and patches of 16 would see four patches of a CIFAR image.

    Args:
        options: those of the model.
        native_size: side of the data set's images in pixels, or None when they are large or differ.
        cells: patches along a side (``Task.cells``).
    """
    arguments = dict(options.args)
    if native_size is None or native_size > SMALL_SIDE or {"img_size", "patch_size"} & set(arguments):
        return arguments
    if options.weights is not None or not takes(options.name, "patch_size"):
        return arguments
    patch = max(2, native_size // cells)
    side = -(-native_size // patch) * patch
    return {"img_size": side, "patch_size": patch, **arguments}


def chosen_for(arguments: Mapping[str, Any], options: ModelOptions) -> str:
    """What a message says of sizes that were chosen for small images; nothing where none was."""
    given = {"img_size", "patch_size"}
    if given & set(options.args) or options.weights is not None or not given <= set(arguments):
        return ""
    return (
        f"img_size={arguments['img_size']} and patch_size={arguments['patch_size']} were chosen for these small images; "
        "give --model.img_size and --model.patch_size that this model takes (--model.img_size alone keeps its own patches), "
        "or take another --model"
    )


def native_size(data: Any) -> int | None:
    """The longer side of a data set's images in pixels, by eight of them; None when it has no random access."""
    if isinstance(data.train, ImageSet) and len(data.train):
        step = max(1, len(data.train) // 8)
        return max(max(data.train.image(i).size) for i in range(0, len(data.train), step))
    return None


def takes(name: str, argument: str) -> bool:
    """Whether the class that a model name builds has a constructor argument of that name."""
    return argument in arguments_of(name)


@functools.cache
def arguments_of(name: str) -> frozenset[str]:
    """Constructor arguments of the class that a model name builds; none for a name that timm does not know."""
    if not timm.is_model(name):
        return frozenset()
    with torch.device("meta"):
        try:
            model = timm.create_model(name)
        except Exception:  # a model that cannot be built bare says so when it is built in earnest
            return frozenset()
    return frozenset(accepted(type(model)))


def build_model(config: TrainConfig, problem: Task, native_size: int | None) -> tuple[nn.Module, ModelCard]:
    """Build the network of a run: timm's model, weights, cures, what the task puts behind it; and the card that rebuilds it.

    Raises:
        UserError: an unknown model or argument, weights that do not fit, a cure that the model cannot take.
    """
    asked = config.model
    for name, why in (("num_classes", "comes from the data"), ("in_chans", "is 3: grey images become RGB")):
        if name in asked.args:
            raise UserError(f"--model.{name} {why}; leave it out")
    if asked.head_dropout is not None and not problem.width:
        raise UserError(
            f"--head_dropout goes before a classifier of whole images, which {problem.name} has not"
        )
    sized = sized_for(asked, native_size, problem.cells)
    for name, value in (("drop_path_rate", asked.drop_path), ("drop_rate", asked.head_dropout)):
        if value is not None:
            if name in asked.args:
                raise UserError(f"--model.{name} is given twice, also by its own option: leave one out")
            sized[name] = value
    if asked.weights is not None and (Path(asked.weights) / "model.json").exists():
        return from_run(config, problem, sized)
    arguments = needed(asked.name, config, problem) | sized
    pretrained = asked.weights == "pretrained"
    try:
        backbone = models.create(asked.name, num_classes=problem.width, pretrained=pretrained, **arguments)
    except UserError as error:
        chosen = chosen_for(sized, asked)
        # A name that does not exist, or an argument of the user's, has its own way out.
        if not chosen or "size" not in str(error):
            raise
        raise UserError(f"{error}: {chosen}") from error
    if asked.weights is not None and not pretrained:
        state = models.load_state(asked.weights)
        models.load_weights(backbone, state, source=asked.weights, name=asked.name, reset_classifier=True)
    backbone, present = cured(backbone, config, [])
    card = ModelCard(asked.name, arguments, input_of(backbone, arguments), cures=present)
    return finished(backbone, config, problem, card)


def needed(name: str, config: TrainConfig, problem: Task) -> dict[str, Any]:
    """Arguments that the task needs of a model of that name."""
    return problem.model_args(lambda argument: takes(name, argument), config.own)


def from_run(config: TrainConfig, problem: Task, arguments: dict[str, Any]) -> tuple[nn.Module, ModelCard]:
    """The network of a run with its weights: all of them for the same problem, those of the backbone for another.

    Raises:
        UserError: another ``--model`` than the run's, or arguments that its weights do not fit.
    """
    folder = str(config.model.weights)
    old = read_card(folder)
    if config.model.name not in (old.arch, ModelOptions().name):
        raise UserError(f"--weights {folder} holds {old.arch}, not {config.model.name}: leave out --model")
    arguments = {**needed(old.arch, config, problem), **old.model_args, **arguments}
    backbone = models.create(old.arch, num_classes=problem.width, **arguments)
    backbone = cures.reapply(backbone, old.cures) if old.cures else backbone
    trained, _ = load_deployed(folder)
    other = (old.task, old.facts) != (problem.name, problem.facts)
    state = old.problem.backbone(trained).state_dict()
    file = str(Path(folder) / "model.safetensors")
    models.load_weights(backbone, state, source=file, name=old.arch, reset_classifier=other)
    set_entries(backbone, entries(old.problem.backbone(trained)))
    backbone, present = cured(backbone, config, old.cures)
    card = ModelCard(old.arch, arguments, input_of(backbone, arguments), cures=present)
    network, card = finished(backbone, config, problem, card)
    if not other and network is not backbone:  # what the task put behind the backbone too
        inner = {f"{name}." for name, part in network.named_modules() if part is problem.backbone(network)}
        behind = {k: v for k, v in trained.state_dict().items() if not k.startswith(tuple(inner))}
        network.load_state_dict(behind, strict=False)
    return network, card


def cured(
    backbone: nn.Module, config: TrainConfig, present: list[dict[str, Any]]
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The backbone with the cures that are asked for, and the record of all that it has.

    Raises:
        UserError: a cure that the model cannot take, or options of cures without any.
    """
    asked = config.cure
    if not asked.names:
        default = CureOptions()
        for name in ("args", "report", "blocks", "init"):
            if getattr(asked, name) != getattr(default, name):
                raise UserError(f"--cure_{name} goes with --cures, which names none")
        return backbone, present
    # Without weights to keep there is nothing to leave unchanged: the source's own initial values train best.
    start = {"init": "paper"} if config.model.weights is None else {}
    start = start if asked.init == "auto" else {"init": asked.init}
    backbone = cures.apply(
        backbone, asked.names, blocks=asked.blocks, report=report_for(config), options=asked.args, **start
    )
    return backbone, list(backbone.deepvit_cures)  # type: ignore[arg-type]


def report_for(config: TrainConfig) -> str | None:
    """The collapse report that blocks "auto" are taken from: the one given, else that of the run whose weights are taken."""
    asked = config.cure
    auto = asked.blocks == "auto" or any(wanted.blocks == "auto" for wanted in cures.parse(asked.names))
    if asked.report is None and auto and config.model.weights is not None:
        own = Path(config.model.weights) / "collapse.json"
        return str(own) if own.is_file() else None
    return asked.report


def finished(
    backbone: nn.Module, config: TrainConfig, problem: Task, card: ModelCard
) -> tuple[nn.Module, ModelCard]:
    """The whole network in training mode, and its card with the task and its facts."""
    card.task, card.facts, card.input = problem.name, problem.facts, problem.input(card.input, config.own)
    return problem.network(backbone, card.input).train(), card
