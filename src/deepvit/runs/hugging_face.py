"""A Hugging Face model to a network of images: classifiers, backbones, the vision tower of a model of images and text."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.data import InputSpec
from deepvit.errors import UserError

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
"""Pillow's numbers, as processors keep them."""
TAKEN = "pixel_values"


@dataclass(frozen=True)
class Missing:
    """Parameters of a network that its file does not hold: they are as they were initialised."""

    count: int
    of: int
    first: str


class PixelValues(nn.Module):
    """A Hugging Face vision model that takes the image tensor as its one argument.

    Args:
        model: takes ``pixel_values``; of SigLIP 2 also the patches' mask and the shape of their grid.
        interpolate: whether position tables are stretched to images of another size than the configuration's.
    """

    def __init__(self, model: nn.Module, interpolate: bool = False) -> None:
        super().__init__()
        self.model = model
        self.config = model.config
        takes = arguments(model)
        self.patch = int(model.config.patch_size) if "spatial_shapes" in takes else None  # type: ignore[union-attr, arg-type]
        self.more = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, images: Tensor) -> Any:
        """``[B, 3, H, W]`` → the model's own output."""
        if self.patch is None:
            return self.model(pixel_values=images, **self.more)
        patches, rows, columns = patches_of(images, self.patch)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=images.device)
        shapes = torch.tensor([[rows, columns]] * len(images), device=images.device)
        parts = {TAKEN: patches, "spatial_shapes": shapes}
        named = {"attention_mask", "pixel_attention_mask"} & arguments(self.model)
        return self.model(**parts, **dict.fromkeys(named, mask))


def patches_of(images: Tensor, side: int) -> tuple[Tensor, int, int]:
    """SigLIP 2's form of images: ``[B, 3, H, W]`` → ``[B, rows * columns, side * side * 3]``, row by row, colours last."""
    batch, colours, height, width = images.shape
    rows, columns = height // side, width // side
    cut = images.reshape(batch, colours, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(batch, rows * columns, side * side * colours), rows, columns


def load(
    name: str, local: bool, img_size: int | None = None
) -> tuple[nn.Module, InputSpec, list[str] | None, list[str], Missing | None]:
    """A Hugging Face model by its hub name or local folder; a classifier where the folder holds one.

    Args:
        name: of the hub, or of a folder.
        local: whether it is a folder.
        img_size: side of the images instead of that of the model's processor.

    Returns:
        the network, how its images are prepared, the names of its classes, notes for the report, and what its file lacks.

    Raises:
        UserError: it cannot be loaded, is no image model, or does not take images of this size.
    """
    try:
        import transformers
    except ImportError:
        raise UserError("Hugging Face models need the extra: pip install 'deepvit[hf]'") from None
    # The hub's client tells of each try to connect; what came of them is told below in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        classifies = any("ImageClassification" in a for a in config.architectures or [])
        loader = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
        whole, info = loader.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, json.JSONDecodeError) as error:
        where = "the folder" if local else "the hub (is there a network, and is the name right?)"
        raise UserError(f"hf:{name} cannot be loaded from {where}: {first_line(error)}") from None
    notes: list[str] = []
    found = tower(whole)
    if found is None:
        raise UserError(
            f"{name} is no image model: {type(whole).__name__} takes {whole.main_input_name}, not {TAKEN}"
        )
    path, model = found
    if path:
        notes.append(f"of {type(whole).__name__} the vision tower is looked at ({path})")
    gone = missing(whole, path, info["missing_keys"])
    prepared, more = preparation(name, model)
    notes += more
    if img_size is not None:
        prepared = InputSpec(img_size, prepared.mean, prepared.std, prepared.interpolation, 1.0)
    network = sized(name, model, prepared, asked=img_size is not None)
    names = list(config.id2label.values()) if classifies and getattr(config, "id2label", None) else None
    return network, prepared, names, notes, gone


def missing(whole: nn.Module, path: str, keys: Iterable[str]) -> Missing | None:
    """What of the part at ``path`` is among ``keys``; None where nothing is. Poolers are not measured, so they do not count.

    Parameters only: buffers (positions, say) are often made anew and in no file: their names say nothing of the weights.
    """
    own = [key for key, _ in whole.named_parameters() if "pooler" not in key and key.startswith(path)]
    told = set(keys)
    lost = [key for key in own if key in told]
    return Missing(len(lost), len(own), lost[0]) if lost else None


def arguments(model: nn.Module) -> set[str]:
    """Names of what the model's ``forward`` takes."""
    return set(inspect.signature(model.forward).parameters)


def tower(whole: nn.Module) -> tuple[str, nn.Module] | None:
    """The outermost part that takes images and nothing else, with its path; None where there is none."""
    paths = dict(whole.named_modules())
    for path in sorted(paths, key=lambda p: (p.count(".") + bool(p), list(paths).index(p))):
        part = paths[path]
        takes = arguments(part)
        if TAKEN in takes and "input_ids" not in takes and hasattr(part, "config"):
            return path, part
    return None


def preparation(name: str, model: nn.Module) -> tuple[InputSpec, list[str]]:
    """How images are prepared, by the model's processor; what the processor does not say, by the configuration."""
    from transformers import AutoImageProcessor

    config: Any = model.config
    size = configured(config) or (224, 224)
    mean, std, interpolation, crop = [0.5] * 3, [0.5] * 3, "bicubic", 1.0
    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, ImportError, AttributeError, KeyError):
        return InputSpec(size), ["no image processor was found: mean and std 0.5 are assumed"]
    if getattr(processor, "do_normalize", True) and getattr(processor, "image_mean", None):
        mean, std = list(processor.image_mean), list(processor.image_std)
    elif getattr(processor, "do_normalize", True) is False:
        mean, std = [0.0] * 3, [1.0] * 3
    interpolation = RESAMPLING.get(getattr(processor, "resample", 3), "bicubic")
    resized = sides(getattr(processor, "size", None)) if getattr(processor, "do_resize", True) else None
    cropped = (
        sides(getattr(processor, "crop_size", None)) if getattr(processor, "do_center_crop", False) else None
    )
    if cropped and resized:
        crop = min(1.0, min(cropped) / min(resized))
    most = getattr(processor, "max_num_patches", None)
    if most and getattr(config, "patch_size", None):  # SigLIP 2: as many patches as fit
        resized = (int(most**0.5) * int(config.patch_size),) * 2
    size = cropped or resized or size
    return InputSpec(size, tuple(mean), tuple(std), interpolation, crop), []


def configured(config: Any) -> tuple[int, int] | None:
    """Height and width that a configuration names."""
    size = getattr(config, "image_size", None)
    if size is None and getattr(config, "num_patches", None) and getattr(config, "patch_size", None):
        size = int(config.num_patches**0.5) * int(config.patch_size)
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def sides(size: Any) -> tuple[int, int] | None:
    """Height and width of a processor's size, in whichever of its forms; None where it says none."""
    if isinstance(size, int):
        return size, size
    if size is None:
        return None
    known = {key: size[key] for key in ("height", "width", "shortest_edge") if size.get(key)}
    if "height" in known and "width" in known:
        return int(known["height"]), int(known["width"])
    return (int(known["shortest_edge"]),) * 2 if "shortest_edge" in known else None


def sized(name: str, model: nn.Module, prepared: InputSpec, asked: bool) -> PixelValues:
    """The network ready for images of that size.

    Raises:
        UserError: it takes images of its own size only.
    """
    made = configured(model.config)
    other = made is not None and made != prepared.hw
    network = PixelValues(model.eval(), other and "interpolate_pos_encoding" in arguments(model))
    if not other:
        return network
    try:
        with torch.no_grad():
            network(torch.zeros(1, int(getattr(model.config, "num_channels", 3)), *prepared.hw))
    except (ValueError, RuntimeError) as error:
        here, there = "×".join(map(str, prepared.hw)), "×".join(map(str, made or ()))
        way = (
            "leave out --model.img_size"
            if asked
            else f"give --model.img_size {made[0] if made else ''}".rstrip()
        )
        raise UserError(
            f"{name} is made for images of {there} pixels and does not take {here} ({first_line(error)}): {way}"
        ) from None
    return network


def first_line(error: Exception) -> str:
    """The first line of another library's error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
