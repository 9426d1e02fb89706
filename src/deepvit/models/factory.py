"""``create``: timm's ``create_model`` for any timm name, with the user's slips told in one line each."""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from deepvit.errors import UserError
from deepvit.models.arguments import accepted, ill_typed
from deepvit.models.checkpoints import load_state, load_weights
from deepvit.models.checks import check_image, check_width
from deepvit.models.deepvit import DeepVisionTransformer, default_cfgs


def names() -> list[str]:
    """The DeepViT models registered with timm by this package, smallest first."""
    return list(default_cfgs)


def table() -> list[dict[str, str]]:
    """Rows for ``deepvit list models``: name, blocks, width, heads, parameters, what it is."""
    rows = []
    for name in names():
        with torch.device("meta"):  # shapes only: the largest has 59 million weights
            model = timm.create_model(name)
        count = sum(parameter.numel() for parameter in model.parameters())
        entry = timm.models.model_entrypoint(name)
        rows.append(
            {
                "model": name,
                "blocks": str(len(model.blocks)),
                "width": str(model.embed_dim),
                "heads": str(model.blocks[0].attn.num_heads),
                "parameters": f"{count / 1e6:.3f} M",
                "what": (entry.__doc__ or "").splitlines()[0].split(" (")[0].rstrip("."),
            }
        )
    return rows


def nearest(name: str, among: Iterable[str], count: int = 3) -> list[str]:
    """The names most like ``name``, best first; those of its family (``vit_…``) go before all others."""
    family = [known for known in among if known.split("_")[0] == name.split("_")[0]]
    return difflib.get_close_matches(name, family or among, n=count, cutoff=0.0 if family else 0.5)


def create(model_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build any timm model by name, ``deepvit_*`` included: ``timm.create_model`` with errors a user can
    act on.

    Args:
        model_name: timm name, with or without a pretrained tag, or ``hf-hub:…`` / ``local-dir:…``.
        pretrained: load timm's published weights (none are published for ``deepvit_*``:
            :func:`load_official`).
        **kwargs: the model's own arguments; ``None`` means the model's default, as in timm.

    Raises:
        UserError: unknown model (nearest names offered), unknown argument (nearest ones offered), a value
            of the wrong type, heads that do not divide the width, a patch that does not divide the image,
            weights that cannot be had.
    """
    _check_name(model_name)
    given = {name: value for name, value in kwargs.items() if value is not None}
    _check_ranges(model_name, given)
    weights = given.get("checkpoint_path")
    # timm tells a misfit over many lines, so the weights are loaded here; its .npz reader is its own.
    own_reader = weights is not None and Path(weights).suffix not in (".npz", ".npy")
    state = load_state(weights) if weights is not None and own_reader else None
    passed = {name: value for name, value in given.items() if not (own_reader and name == "checkpoint_path")}
    try:
        model: nn.Module = timm.create_model(model_name, pretrained=pretrained, **passed)
    except UserError:
        raise
    except Exception as error:
        _explain(error, model_name, passed, pretrained)
        raise
    built = getattr(model, "model", model)  # features_only wraps the network
    _refuse(ill_typed(type(built), given, strict=False), model_name)
    _check_sizes(built, given)
    if state is not None:
        load_weights(model, state, source=str(weights), name=model_name)
    return model


def _check_name(model_name: str) -> None:
    if ":" in model_name:
        return  # hf-hub:…, local-dir:…: timm reads the name from there
    plain, _, tag = model_name.partition(".")
    if not timm.is_model(model_name):
        known = timm.list_models()
        alike = nearest(plain, known) or [name for name in known if plain and plain in name][:3]
        offer = (
            f"did you mean {' or '.join(alike)}?" if alike else "`deepvit list models` shows what there is"
        )
        raise UserError(f"unknown model {model_name!r}: {offer}")
    tags = [name.partition(".")[2] for name in timm.list_models(f"{plain}.*", include_tags=True)]
    if tag and tag not in tags:
        offer = f"it has {', '.join(tags)}" if any(tags) else "it has none"
        raise UserError(f"model {plain} has no pretrained weights {tag!r}: {offer}")


_LEAST = {
    "num_classes": 0,
    "in_chans": 1,
    "depth": 1,
    "embed_dim": 1,
    "num_heads": 1,
    "img_size": 1,
    "patch_size": 1,
}


def _check_ranges(model_name: str, given: Mapping[str, Any]) -> None:
    """Counts and rates that timm would take and fail on much later."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if name in _LEAST and value < _LEAST[name]:
            _refuse(f"{name}={value} must be at least {_LEAST[name]}", model_name)
        if name.endswith(("drop_rate", "drop_path_rate")) and not 0 <= value < 1:
            _refuse(f"{name}={value} must be at least 0 and below 1", model_name)


def _refuse(problem: str | None, model_name: str) -> None:
    if problem is not None:
        raise UserError(f"model {model_name}: {problem}")


def _check_sizes(model: nn.Module, given: Mapping[str, Any]) -> None:
    """A patch that leaves a rest of the image is refused where the user chose the sizes."""
    embed = getattr(model, "patch_embed", None)
    image, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    padded = given.get("dynamic_img_size") and given.get("dynamic_img_pad")
    if ("img_size" in given or "patch_size" in given) and image and patch and not padded:
        check_image(image, patch)


class _Attempt(NamedTuple):
    """What timm was about to call when it failed: the class, and all its arguments."""

    build: Callable[..., Any] | None
    arguments: Mapping[str, Any]


def _attempt(trace: TracebackType | None) -> _Attempt:
    """Read from the frame of timm's builder, through which all of its models are made."""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "build_model_with_cfg":
            local = trace.tb_frame.f_locals
            return _Attempt(local.get("model_cls"), local.get("kwargs", {}))
        trace = trace.tb_next
    return _Attempt(None, {})


def _explain(error: Exception, model_name: str, given: Mapping[str, Any], pretrained: bool) -> None:
    """Raise :class:`UserError` when a failed build comes from what the user gave; otherwise return."""
    attempt = _attempt(error.__traceback__)
    known = accepted(attempt.build) if attempt.build is not None else {}
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if (
        isinstance(error, TypeError)
        and unknown
        and unknown.group(1) in given
        and unknown.group(1) not in known
    ):
        raise UserError(_unknown_argument(model_name, unknown.group(1), list(known))) from error
    if attempt.build is not None:
        _refuse(ill_typed(attempt.build, given, strict=True), model_name)
    sizes = {**{name: parameter.default for name, parameter in known.items()}, **attempt.arguments}
    width, heads = sizes.get("embed_dim"), sizes.get("num_heads")
    if isinstance(width, int) and isinstance(heads, int) and {"embed_dim", "num_heads"} & given.keys():
        check_width(width, heads)
    reason = _reason(error)
    if pretrained:
        raise UserError(f"model {model_name}: its pretrained weights cannot be had ({reason})") from error
    if isinstance(error, (OSError, RuntimeError, ValueError)) and ":" in model_name:
        raise UserError(
            f"model {model_name}: its weights or configuration cannot be read ({reason})"
        ) from error
    if given:
        chosen = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise UserError(f"model {model_name} cannot be built with {chosen[:200]} ({reason})") from error


def _reason(error: Exception) -> str:
    """The first line of what the error says; of a bare ``assert``, what it asserts; of a raised text, the text."""
    said = str(error).strip()
    frames = traceback.extract_tb(error.__traceback__)
    if said.startswith(
        "exceptions must derive from"
    ):  # timm raises a bare text here and there: it is the reason
        text = re.search(r"raise\W+(['\"])(.+)\1", (frames[-1].line if frames else None) or "")
        said = text.group(2) if text else said
    if said:
        return said.splitlines()[0]
    return (frames[-1].line if frames else None) or type(error).__name__


def _unknown_argument(model_name: str, name: str, known: list[str]) -> str:
    alike = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    if alike:
        offer = f"did you mean {' or '.join(alike)}?"
    elif name in accepted(DeepVisionTransformer).keys() - accepted(VisionTransformer).keys():
        offer = "only the deepvit_* models have it (another ViT takes Re-attention as a cure)"
    else:
        offer = f"nearest are {', '.join(difflib.get_close_matches(name, known, n=5, cutoff=0.0))}"
    return f"model {model_name} has no argument {name!r}: {offer}"
