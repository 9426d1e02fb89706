"""From options to a network that fits the data: sizes for small images, weights, cures."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from deepvit import cures, models
from deepvit.data import ImageData, ImageSet
from deepvit.errors import UserError
from deepvit.training.config import TrainConfig
from deepvit.training.deploy import ModelCard, read_card

SMALL = 96  # up to this side in pixels images keep their own size; a ViT for 224 pixels would only blur them


def sized_for(config: TrainConfig, native_size: int | None) -> dict[str, Any]:
    """The model's arguments with ``img_size`` and ``patch_size`` for small images, unless the user gave them.

    Images of at most 96 pixels are taken at their own size, with patches that give a grid of about 8 × 8 (4 × 4
    for images of 8 pixels): a model made for 224 pixels and patches of 16 would see four patches of a CIFAR image.

    Args:
        config: ``model`` and ``model_args`` are read.
        native_size: side of the data set's images in pixels, or None when they are large or differ.
    """
    arguments = dict(config.model_args)
    if native_size is None or native_size > SMALL or {"img_size", "patch_size"} & set(arguments):
        return arguments
    if config.weights is not None or not takes(config.model, "patch_size"):
        return arguments
    patch = max(2, native_size // 8)
    side = -(-native_size // patch) * patch
    return {"img_size": side, "patch_size": patch, **arguments}


def native_size(data: ImageData) -> int | None:
    """The longer side of a data set's images in pixels, by eight of them; None when it has no random access."""
    if isinstance(data.train, ImageSet) and len(data.train):
        step = max(1, len(data.train) // 8)
        return max(max(data.train.image(i).size) for i in range(0, len(data.train), step))
    return None


def takes(name: str, argument: str) -> bool:
    """Whether the class that a model name builds has a constructor argument of that name."""
    if not timm.is_model(name):
        return False
    with torch.device("meta"):
        try:
            model = timm.create_model(name)
        except Exception:  # a model that cannot be built bare says so when it is built in earnest
            return False
    return argument in inspect.signature(type(model).__init__).parameters


def build_model(
    config: TrainConfig, class_names: list[str], native_size: int | None
) -> tuple[nn.Module, ModelCard]:
    """Build the network of a run: timm's model, weights, cures; and the card that rebuilds it.

    Raises:
        UserError: an unknown model or argument, weights that do not fit, a cure that the model cannot take.
    """
    for name, why in (("num_classes", "comes from the data"), ("in_chans", "is 3: grey images become RGB")):
        if name in config.model_args:
            raise UserError(f"--model.{name} {why}; leave it out")
    arguments = sized_for(config, native_size)
    for name, value in (("drop_path_rate", config.drop_path), ("drop_rate", config.head_dropout)):
        if value is not None:
            if name in config.model_args:
                raise UserError(f"--model.{name} is given twice, also by its own option: leave one out")
            arguments[name] = value
    count = len(class_names)
    present: list[dict[str, Any]] = []
    if config.weights is not None and (Path(config.weights) / "model.json").exists():
        old = read_card(config.weights)
        if old.arch != config.model and config.model != TrainConfig.model:
            raise UserError(
                f"--weights {config.weights} holds {old.arch}, not {config.model}: leave out --model"
            )
        arch, arguments, present = old.arch, {**old.model_args, **arguments}, old.cures
        model = models.create(arch, num_classes=count, **arguments)
        model = cures.reapply(model, present) if present else model
        file = Path(config.weights) / "model.safetensors"
        other = old.class_names != class_names
        models.load_weights(
            model, models.load_state(file), source=str(file), name=arch, reset_classifier=other
        )
    elif config.weights == "pretrained":
        arch = config.model
        model = models.create(arch, pretrained=True, num_classes=count, **arguments)
    else:
        arch = config.model
        model = models.create(arch, num_classes=count, **arguments)
        if config.weights is not None:
            state = models.load_state(config.weights)
            models.load_weights(model, state, source=config.weights, name=arch, reset_classifier=True)
    if config.cures:
        # Without weights to keep there is nothing to leave unchanged: the source's own initial values train best.
        start = {"init": "paper"} if config.weights is None else {}
        start = start if config.cure_init == "auto" else {"init": config.cure_init}
        model = cures.apply(
            model,
            config.cures,
            blocks=config.cure_blocks,
            report=config.cure_report,
            options=config.cure_args,
            **start,
        )
        present = list(model.deepvit_cures)  # type: ignore[arg-type]
    elif config.cure_args or config.cure_report:
        raise UserError("--cure_args and --cure_report go with --cures, which names none")
    card = ModelCard(arch, arguments, list(class_names), present, input_of(model, arguments))
    return model.train(), card


def input_of(model: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the model wants as input: side in pixels, mean, std, interpolation, share of the image in the crop."""
    found = timm.data.resolve_model_data_config(model)
    size = arguments.get("img_size", found["input_size"][-1])
    size = size if isinstance(size, int) else size[-1]
    small = size <= SMALL
    return {
        "size": size,
        "mean": list(found["mean"]),
        "std": list(found["std"]),
        "interpolation": found["interpolation"],
        "crop_pct": 1.0 if small else found["crop_pct"],  # nothing of a small image is to spare
    }
