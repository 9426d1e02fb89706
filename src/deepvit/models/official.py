"""Official checkpoints: as a model at once, or as safetensors with the architecture told from the shapes."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.files import atomic_path
from deepvit.models.checkpoints import Which, adapted, fit_error, load_state, load_weights, select_state
from deepvit.models.factory import create, names
from deepvit.models.unpickle import read_checkpoint


def load_official(
    path: str | os.PathLike[str],
    model_name: str,
    which: Which = "auto",
    *,
    reset_classifier: bool = False,
    **model_kwargs: Any,
) -> nn.Module:
    """A model with the weights of an official DeepViT checkpoint, or of any file :func:`load_state`
    understands.

    Args:
        path: the checkpoint file.
        model_name: a timm name, such as ``deepvit_s_patch16_224``.
        which: averaged (``"ema"``) or trained (``"raw"``) weights; ``"auto"`` prefers the averaged.
        reset_classifier: for fine-tuning: everything but the classifier is loaded.
        **model_kwargs: the model's own arguments; ``num_classes`` is by default the number in the file.

    Raises:
        UserError: unreadable or hostile file, unknown model or argument, or weights that do not fit (which,
            and their shapes).
    """
    state = load_state(path, which)
    head = state.get("head.weight")
    if head is not None and head.ndim == 2 and not reset_classifier:
        model_kwargs.setdefault("num_classes", len(head))
    model = create(model_name, **model_kwargs)
    try:
        load_weights(model, state, source=str(path), name=model_name, reset_classifier=reset_classifier)
    except UserError as error:
        raise UserError(f"{error}{_guess(state, model_name)}") from None
    return model


def infer_model(state: Mapping[str, Tensor]) -> str | None:
    """The published DeepViT whose shapes these weights have (position table and classifier aside), or
    ``None``.

    Of two sizes that differ by resolution alone, the one whose position table has this length is taken.
    """
    saved = {key: tuple(value.shape) for key, value in state.items()}
    fitting = []
    for name in names():
        shapes = _shapes(name)
        if _fixed(shapes) == _fixed(saved):
            fitting.append((shapes["pos_embed"] != saved.get("pos_embed"), name))
    return min(fitting)[1] if fitting else None


@functools.cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in _on_meta(name).state_dict().items()}


def _fixed(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Without those that depend on the data: its resolution and its classes."""
    return {key: shape for key, shape in shapes.items() if key != "pos_embed" and not key.startswith("head.")}


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    model: str | None = None,
    which: Which = "auto",
    overwrite: bool = False,
    model_args: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the weights of a checkpoint as ``.safetensors`` that ``timm.create_model(checkpoint_path=…)``
    loads.

    Nothing is written unless the weights fit the model. Model name and arguments are kept in the file's
    metadata.

    Args:
        src: official or timm checkpoint (:func:`load_state`).
        dst: file to write, ending in ``.safetensors``.
        model: timm name of the architecture; by default told from the shapes, among the published DeepViT
            sizes.
        which: ``"ema"``, ``"raw"`` or ``"auto"`` (averaged weights where there are any).
        overwrite: replace ``dst`` if it is there.
        model_args: the model's own arguments where they are not the published ones, as --model.img_size 64.

    Returns:
        ``source, destination, model, model_args, weights`` (``"ema"`` or ``"raw"``), ``tensors,
        parameters``.

    Raises:
        UserError: unreadable or hostile source, shapes of no known model, weights that do not fit, a
            destination that exists or is no ``.safetensors``.
    """
    source, target = Path(src), Path(dst)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the destination must end in .safetensors")
    if target.is_dir():
        raise UserError(f"{target}: is a folder; name the file to write")
    if target.exists() and (not overwrite or (source.exists() and target.samefile(source))):
        way = (
            "is the source itself; name another file" if source.exists() and target.samefile(source) else None
        )
        raise UserError(f"{target}: {way or 'exists already; overwrite=True (--overwrite) replaces it'}")
    state, weights = select_state(read_checkpoint(source), which, str(source))
    name = model if model is not None else infer_model(state)
    if name is None:
        raise UserError(
            f"{source}: its shapes ({_described(state)}) are those of no published DeepViT; name the model "
            f"(--model), one of {', '.join(names())} or any timm name, and its arguments (--model.KEY VALUE)"
        )
    given = dict(model_args or {})
    arguments = {**_arguments(state, name, given), **given}
    empty = _on_meta(name, **arguments)
    error = fit_error(empty, adapted(empty, state), str(source), name)
    if error is not None:
        raise UserError(f"{error}{_guess(state, name)}")
    metadata = {"format": "pt", "model": name, "model_args": json.dumps(arguments), "weights": weights}
    # Own memory for each: safetensors refuses tensors that share storage, as views into one buffer do.
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    try:
        with atomic_path(target) as temporary:
            save_file(tensors, temporary, metadata=metadata)
    except OSError as failure:
        raise UserError(f"{target}: cannot be written ({failure.strerror or failure})") from failure
    return {
        "source": str(source),
        "destination": str(target),
        "model": name,
        "model_args": arguments,
        "weights": weights,
        "tensors": len(tensors),
        "parameters": sum(value.numel() for value in empty.parameters()),
    }


def _guess(state: Mapping[str, Tensor], name: str) -> str:
    """For the end of an error: the published model that the weights are of, where it is another."""
    fitting = infer_model(state)
    return f"; the weights have the shapes of {fitting}" if fitting not in (None, name) else ""


def _on_meta(name: str, **arguments: Any) -> Any:
    """The model without memory for its weights: only names and shapes are wanted."""
    with torch.device("meta"):
        return create(name, **arguments)


def _arguments(state: Mapping[str, Tensor], name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """``num_classes`` and ``img_size`` as the shapes tell them, where they are not the model's own."""
    found: dict[str, Any] = {}
    head = state.get("head.weight")
    if head is not None and head.ndim == 2:
        found["num_classes"] = len(head)
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or "img_size" in given:
        return found
    model = _on_meta(name, **{**found, **given})
    own = getattr(model, "pos_embed", None)
    if own is None or own.shape == table.shape:
        return found
    extra = 0 if model.no_embed_class else model.num_prefix_tokens
    side = math.isqrt(max(table.shape[1] - extra, 0))
    if side * side + extra == table.shape[1]:
        height, width = model.patch_embed.patch_size
        found["img_size"] = [side * height, side * width]
    return found


def _described(state: Mapping[str, Tensor]) -> str:
    """Blocks, width and stem of the weights, in words."""
    blocks = {int(found.group(1)) for key in state if (found := re.match(r"blocks\.(\d+)\.", key))}
    mixing = {
        int(found.group(1)) for key in state if (found := re.match(r"blocks\.(\d+)\.attn\.reatten_", key))
    }
    width = state["cls_token"].shape[-1] if "cls_token" in state else "unknown"
    stem = "conv" if "patch_embed.conv1.weight" in state else "linear"
    return f"{len(blocks)} blocks, {len(mixing)} of them with Re-attention, width {width}, {stem} stem"
