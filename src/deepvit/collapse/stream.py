"""One pass of a model over a loader's images, measured on the way: memory does not grow with the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepvit.capturing import MapLayout, Seen, TokenLayout, capture
from deepvit.collapse.attention_sums import AttentionSums
from deepvit.collapse.catalogue import of_stage
from deepvit.collapse.chosen import ChosenMaps
from deepvit.collapse.plan import Plan
from deepvit.collapse.rows import Row
from deepvit.collapse.token_sums import TokenSums
from deepvit.errors import UserError


@dataclass
class Batch:
    """Images [B,3,h,w] with their numbers in the stream, what to call them, and targets where the loader gives some."""

    images: Tensor
    numbers: list[int]
    labels: list[str]
    targets: Any = None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is again in the mode that it was in by itself."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        # Not model.train(): parts that were frozen in evaluation mode must stay so.
        for module in training:
            module.training = True


def batches(loader: Iterable[Any], images: int | None, class_names: Sequence[str] | None) -> Iterator[Batch]:
    """The first ``images`` images of a loader of tensors, of (images, targets, ...) or of mappings.

    A mapping is read by ``pixel_values`` or ``image`` and ``labels`` or ``label``. Raises UserError for
    anything else.
    """
    seen = 0
    for item in loader:
        if images is not None and seen >= images:
            return
        tensor, targets = _images_and_targets(item)
        if images is not None:
            tensor = tensor[: images - seen]
        numbers = list(range(seen, seen + len(tensor)))
        labels = [_label(n, i, targets, class_names) for i, n in enumerate(numbers)]
        # Targets of as many images as there are; other things that loaders give besides are not known.
        known = isinstance(targets, Tensor | list) and len(targets) >= len(tensor)
        yield Batch(tensor, numbers, labels, targets[: len(tensor)] if known else None)
        seen += len(tensor)


def _images_and_targets(item: Any) -> tuple[Tensor, Any]:
    targets = None
    if isinstance(item, Mapping):
        tensor = item.get("pixel_values", item.get("image"))
        targets = item.get("labels", item.get("label"))
    elif isinstance(item, tuple | list):
        tensor = item[0]
        targets = item[1] if len(item) > 1 else None
    else:
        tensor = item
    if not isinstance(tensor, Tensor) or tensor.ndim != 4 or not tensor.is_floating_point():
        found = (
            f"shape {tuple(tensor.shape)}, {tensor.dtype}"
            if isinstance(tensor, Tensor)
            else type(tensor).__name__
        )
        raise UserError(
            f"the loader must give float images [B, C, height, width] or tuples with them first, not {found}"
        )
    return tensor, targets


def _label(number: int, place: int, targets: Any, class_names: Sequence[str] | None) -> str:
    target = targets[place] if isinstance(targets, Tensor | list | tuple) and place < len(targets) else None
    if isinstance(target, Tensor) and target.numel() == 1:
        target = target.item()
    if isinstance(target, int) and class_names is not None and 0 <= target < len(class_names):
        return f"{class_names[target]} (image {number})"
    return f"image {number}"


class Pass:
    """Runs a model over batches: attention on every k-th image, tokens on all, by ``plan``.

    ``attention``, ``tokens`` and ``chosen`` then hold what was measured. ``seen`` is the capture of the
    latest forward pass with maps; it has the checks that every map was verified by.
    """

    def __init__(
        self, model: nn.Module, rows: Sequence[Row], plan: Plan, chosen: ChosenMaps | None = None
    ) -> None:
        self.model, self.rows, self.plan, self.chosen = model, rows, plan, chosen
        self.attention = AttentionSums(rows, plan)
        self.tokens = TokenSums(rows, plan)
        self.images = self.attention_images = 0
        self._branches = any("patches_between" in metric.needs for metric in of_stage("tokens", plan.metrics))
        self._seen = Seen()
        self.worst_check: dict[str, float] = {}
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self._to: dict[str, Any] = (
            {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}
        )
        self._blocks = list(dict.fromkeys(row.block for row in rows))

    def run(self, batch: Batch, done: Callable[[int], None] = lambda images: None) -> None:
        """Measure one batch; ``done`` is told after each forward pass how many images it had."""
        wanted = [self.plan.wants_attention(number) for number in batch.numbers]
        for with_maps, size in ((True, self.plan.attention_chunk), (False, self.plan.token_chunk)):
            places = [place for place, flag in enumerate(wanted) if flag == with_maps]
            for start in range(0, len(places), size):
                chunk = places[start : start + size]
                self._forward(batch, chunk, with_maps)
                done(len(chunk))

    def _forward(self, batch: Batch, places: list[int], with_maps: bool) -> None:
        numbers = [batch.numbers[place] for place in places]
        images = batch.images[places].to(**self._to)
        self.tokens.begin(numbers)
        if with_maps:
            self.attention.begin(numbers)
            if self.chosen is not None:
                self.chosen.begin(numbers, images, [batch.labels[place] for place in places])
        consumers: dict[str, Any] = {"on_tokens": self._on_tokens if with_maps else self.tokens.on_tokens}
        if with_maps:
            consumers |= {"on_attention": self._on_attention, "on_softmax": self.attention.on_softmax}
        with (
            torch.no_grad(),
            inputs_of(self.model, self.rows, self.tokens.entering),
            between_branches(self.model, self.rows if self._branches else [], self.tokens.between),
            capture(
                self.model,
                self._blocks,
                attention=with_maps,
                qkv=with_maps and self.attention.wants_values,
                **consumers,
            ) as seen,
        ):
            self._seen = seen
            self.model(images)
        self.tokens.end()
        if with_maps:
            self.attention.end()
            self.attention_images += len(numbers)
            self._note(seen)
        self.images += len(numbers)

    def _on_attention(self, key: str, maps: Tensor, layout: MapLayout) -> None:
        # Taken out as they come: queries, keys and values of all blocks at once would be several maps large.
        kept = [held.pop(key, None) for held in (self._seen.values, self._seen.queries, self._seen.keys)]
        self.attention.on_attention(key, maps, layout, kept[0])
        if self.chosen is not None:
            self.chosen.on_attention(key, maps, layout)

    def _on_tokens(self, block: str, tokens: Tensor, layout: TokenLayout) -> None:
        self.tokens.on_tokens(block, tokens, layout)
        if self.chosen is not None:
            self.chosen.on_tokens(block, tokens, layout)

    def _note(self, seen: Seen) -> None:
        for key, check in seen.checks.items():
            self.worst_check[key] = max(check.error, self.worst_check.get(key, 0.0))


@contextmanager
def inputs_of(
    model: nn.Module, rows: Sequence[Row], consumer: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Hand the tokens that enter each block to ``consumer`` as [B,N,C], where a block is a called module."""
    handles: list[RemovableHandle] = []
    for row in rows:
        if row.tokens is None or row.tokens.read_from.startswith("input"):
            continue
        hook = _input_hook(row, consumer)
        handles.append(model.get_submodule(row.block).register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(row: Row, consumer: Callable[[str, Tensor], None]) -> Callable[..., None]:
    assert row.tokens is not None
    channels = row.tokens.channels

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        tokens = None if tensor is None else _as_tokens(tensor, channels)
        if tokens is not None:
            consumer(row.block, tokens)

    return hook


def _as_tokens(tensor: Tensor, channels: int) -> Tensor | None:
    """A stream of any layout as [B,N,C]; None where it is none."""
    if tensor.ndim == 4 and tensor.shape[-1] == channels:
        return tensor.flatten(1, 2)
    if tensor.ndim == 4 and tensor.shape[1] == channels:
        return tensor.flatten(2).mT
    return tensor if tensor.ndim == 3 else None


# The norm before the MLP, by the names of timm, Hugging Face and torchvision.
_SECOND_NORMS = ("norm2", "layernorm_after", "layer_norm2", "ln_2")


@contextmanager
def between_branches(
    model: nn.Module, rows: Sequence[Row], consumer: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Hand the stream between attention and MLP of each block to ``consumer`` as [B,N,C], where a block norms before both.

    It is what the second norm reads. Where norms come after the branch (Swin v2) that is the MLP's own output, and where
    they come after the sum (torch's encoder by default) nothing runs behind it: both are told by that, and left out.
    """
    handles: list[RemovableHandle] = []
    for row in rows:
        block = model.get_submodule(row.block)
        norm = next((n for n in _SECOND_NORMS if isinstance(getattr(block, n, None), nn.Module)), None)
        if norm is not None and row.tokens is not None:
            handles += _between_hooks(row, block, getattr(block, norm), consumer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _between_hooks(
    row: Row, block: nn.Module, norm: nn.Module, consumer: Callable[[str, Tensor], None]
) -> list[RemovableHandle]:
    assert row.tokens is not None
    channels = row.tokens.channels
    made: list[Any] = [None]  # what the part before it returned
    waiting: list[Tensor] = []
    ran: set[int] = set()

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if id(module) in ran:  # the block runs again, as capture has it where it runs as one kernel
            ran.clear()
            waiting.clear()
        ran.add(id(module))
        if module is norm:
            stream = args[0] if args and isinstance(args[0], Tensor) and args[0] is not made[0] else None
            tokens = None if stream is None else _as_tokens(stream, channels)
            waiting[:] = [] if tokens is None else [tokens]
        elif waiting:  # something reads what the norm made
            consumer(row.block, waiting.pop())

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        made[0] = output

    return [
        handle
        for part in block.children()
        for handle in (part.register_forward_pre_hook(before), part.register_forward_hook(after))
    ]
