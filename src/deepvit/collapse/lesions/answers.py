"""What a network answers, whatever it returns, and how far two answers lie apart, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepvit.errors import UserError

_CLASSES = ("logits", "out")  # Hugging Face, torchvision's segmentation networks
_POOLED = ("pooler_output", "image_embeds", "pooled")


@dataclass(frozen=True)
class Reader:
    """How the answer is read from a network's output.

    ``task``: "classification" (logits [B, K]), "dense" (logits [B, K, h, w]) or "features" (pooled to [B, C]).
    ``head``: name of the module whose input is read instead of the output, or "". One number an image has no direction that
    a cosine could compare, and no other class: what it was made of is compared.
    """

    task: str
    head: str = ""

    @property
    def measure(self) -> str:
        """Name of the distance: "kl", "kl_per_pixel" or "cosine"."""
        return {"classification": "kl", "dense": "kl_per_pixel", "features": "cosine"}[self.task]

    def read(self, output: Any) -> Tensor:
        """Log-probabilities [B, K] or [B, K, h, w], or pooled features [B, C], in float64 where there are few."""
        tensor = answer_of(output)
        if self.task == "features":
            return pooled(tensor).double()
        # Differences of a thousandth of a nat matter, and half precision has no such digits.
        return tensor.to(torch.float64 if tensor.ndim == 2 else torch.float32).log_softmax(1)


def reader_of(model: nn.Module, output: Any) -> Reader:
    """How a network's answer is read, from what it returned: as classes where a classifier made it.

    A classifier is what calls its output logits, says ``num_classes`` above 0 (timm), or returns what one of its
    ``Linear`` or ``Conv2d`` layers of as many outputs can have made. Of a network of one output the features before it
    are read.

    Raises:
        UserError: one output, and no layer that can have made it.
    """
    tensor = answer_of(output)
    if tensor.shape[1] == 1 and tensor.ndim in (2, 4):
        return Reader("features", single_head(model))
    named = isinstance(output, Mapping) and any(key in output for key in _CLASSES)
    stated = getattr(model, "num_classes", None)
    width = tensor.shape[1]
    if isinstance(stated, int) and not named:
        classes = stated > 0
    else:
        classes = named or any(
            width in (getattr(m, "out_features", None), getattr(m, "out_channels", None)) and _is_head(name)
            for name, m in model.named_modules()
        )
    if not classes or width < 2 or tensor.ndim == 3:
        return Reader("features")
    return Reader("dense" if tensor.ndim == 4 else "classification")


def single_head(model: nn.Module) -> str:
    """Name of the layer that makes the one output: the last of one output, heads by name before others."""
    found: list[str] = [
        name
        for name, module in model.named_modules()
        if 1 in (getattr(module, "out_features", None), getattr(module, "out_channels", None))
    ]
    chosen = [name for name in found if _is_head(name)] or found
    if not chosen:
        raise UserError("it has one output, and no layer is found that makes it")
    return chosen[-1]


@contextmanager
def input_of_head(model: nn.Module, reader: Reader) -> Iterator[list[Tensor]]:
    """Keep what enters ``reader.head`` in the passes inside; the last one's is the list's only entry."""
    seen: list[Tensor] = []

    def hook(_module: nn.Module, args: Any) -> None:
        seen[:] = [args[0]]

    if not reader.head:
        yield seen
        return
    handle = model.get_submodule(reader.head).register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _is_head(name: str) -> bool:
    """Whether a layer is a classifier by its name: inside something called so, and not in a block."""
    known = ("head", "heads", "classifier", "fc", "mlp_head", "decode_head", "predictor", "linear_head")
    return any(part in known or part.startswith(("head", "classif")) for part in name.split("."))


def answer_of(output: Any) -> Tensor:
    """The tensor that is the answer: logits before pooled features before anything else."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in (*_CLASSES, *_POOLED):
            if isinstance(output.get(key), Tensor):
                return output[key]  # type: ignore[no-any-return]
        output = list(output.values())
    if isinstance(output, tuple | list):
        for item in output:
            found = item if isinstance(item, Tensor) and item.is_floating_point() else None
            if found is not None and found.ndim >= 2:
                return found
            if isinstance(item, Mapping | tuple | list) and item:
                return answer_of(item)
    raise UserError(f"it returns {type(output).__name__}, in which no answer can be found")


def pooled(tensor: Tensor) -> Tensor:
    """Features [B, C]: of maps [B, C, h, w] and tokens [B, N, C] the mean over places."""
    if tensor.ndim == 4:
        return tensor.flatten(2).mean(-1)
    return tensor.mean(1) if tensor.ndim == 3 else tensor


def distance(reader: Reader, intact: Tensor, lesioned: Tensor) -> Tensor:
    """Distance of the answers [B]: KL(intact ‖ lesioned) in nats, its mean over places, or 1 − cosine.

    KL = Σ_k p_k (log p_k − log q_k), p the intact network's probabilities.
    """
    if reader.task == "features":
        return 1 - F.cosine_similarity(intact, lesioned, dim=-1)
    kl = (intact.exp() * (intact - lesioned)).sum(1)
    return (kl.flatten(1).mean(1) if kl.ndim > 1 else kl).double().clamp_min(0)


def changed(reader: Reader, intact: Tensor, lesioned: Tensor) -> Tensor | None:
    """Whether the first answer is another [B] (share of the places of a dense one); None without classes."""
    if reader.task == "features":
        return None
    other = (intact.argmax(1) != lesioned.argmax(1)).double()
    return other.flatten(1).mean(1) if other.ndim > 1 else other


class ToldApart:
    """How much answers say about the images, in the unit of ``distance``, from sums over chunks."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.count = reader, 0
        self._entropy = 0.0
        self._sum: Tensor | None = None

    def add(self, answer: Tensor) -> None:
        """Take in answers [B, ...] of the intact network."""
        if self.reader.task == "features":
            each = F.normalize(answer, dim=-1)
        else:
            p = answer.exp().double()
            each, h = p, -(p * answer).sum(1)
            if each.ndim > 2:  # over images and places: how much a place's answer differs from any other's
                each, h = each.flatten(2).mean(-1), h.flatten(1).mean(-1)
            self._entropy += float(h.sum())
        total = each.sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self.count += len(answer)

    def value(self) -> float:
        """Mutual information of image and answer, H(mean p) − mean H(p); for features 1 − mean cosine of two images."""
        if self._sum is None or self.count < 2:
            return 0.0
        if self.reader.task == "features":
            mean_cosine = (float(self._sum.square().sum()) - self.count) / (self.count * (self.count - 1))
            return max(0.0, 1 - mean_cosine)
        mean = self._sum / self.count
        return max(0.0, float(-torch.xlogy(mean, mean).sum()) - self._entropy / self.count)
