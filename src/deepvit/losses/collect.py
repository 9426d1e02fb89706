"""The losses for somebody's training loop: listen to a model, then ask for the terms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses.attention_inputs import AttentionInputs
from deepvit.losses.intermediates import (
    Taken,
    attention_inputs,
    check_attention,
    find_places,
    listen,
    patches_of,
    unwrap,
    width_of,
)
from deepvit.losses.patch_mix import PatchLabels, soft_labels
from deepvit.losses.registry import LOSSES, PAPER_WEIGHTS, find
from deepvit.losses.teacher import Teacher


class Diversity(nn.Module):
    """Diversity losses of a model, collected while it runs.

    ::

        div = losses.Diversity(model, {"patch_cosine": 1.0, "patch_mixing": 1.0}, num_classes=10)
        with div.watch():
            logits = model(mixed.images)
        terms = div.terms(mixed.patches)          # {"patch_cosine": …, "patch_mixing": …}, not weighted
        loss = cross_entropy(logits, mixed.targets) + div.total(terms)

    It is a module because the mixing head is trained: put it beside the model in whatever holds your
    parameters (for DistributedDataParallel: wrap one module that holds both). The model is not its child, so
    its state dict holds the head alone.

    Which tokens: h[1] is the output of the first block and h[L] of the last; for hierarchical models (Swin)
    of the first and last block of the last stage, whose grids agree. By default (``tokens="auto"``) each form
    takes what its source takes: the paper's cosine and contrastive losses h[L] as the block gives it, which is what a
    collapse report measures; the mixing head, and the contrastive loss's official form, the tokens after the model's
    final norm. ``"block"`` or ``"norm"`` says it for all. (A model that pools first and norms after has no final norm
    over tokens: block output it is.) The first tokens of ``patch_contrastive``'s official form are the output of
    ``patch_embed``.

    Args:
        model: any timm ViT, Swin, CaiT, XCiT or Twins, compiled or wrapped or not; any other module, with ``first`` and
            ``last``.
        weights: loss name → weight, at least 0; names with weight 0 are not computed. Default:
            ``PAPER_WEIGHTS``.
        forms: loss name → form, where another than the default is wanted.
        options: loss name → its options.
        num_classes: classes of the mixing head; by default the model's own.
        tokens: "auto", "block" or "norm", see above.
        first: module name that overrides where h[1] is taken.
        last: the same for h[L].
        attention_blocks: the option ``blocks`` of attention_cosine.
        attention_images: its option ``images``. The maps cost more than all other terms together; a quarter of the
            images, the default, keeps the step within 3%.
        teacher: a network for the losses that compare with a frozen one. It is put into evaluation mode, runs
            without gradient on the images that the model was called with, and is no child of this module either.

    Raises UserError for unknown names, forms or options, negative weights, and models it finds no patch tokens in.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, float] | None = None,
        *,
        forms: Mapping[str, str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        num_classes: int | None = None,
        tokens: str = "auto",
        first: str | None = None,
        last: str | None = None,
        attention_blocks: Sequence[int] | None = None,
        attention_images: float | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.weights = check_weights(PAPER_WEIGHTS if weights is None else weights)
        self.forms = _check_forms(forms or {})
        if tokens not in ("auto", "block", "norm"):
            raise UserError(f"tokens={tokens!r}: choose from auto, block, norm")
        self.tokens = tokens
        given = {name: dict(told) for name, told in (options or {}).items()}
        if attention_blocks is not None:
            given.setdefault("attention_cosine", {})["blocks"] = tuple(attention_blocks)
        if attention_images is not None:
            given.setdefault("attention_cosine", {})["images"] = attention_images
        self.options = {name: find(name).make_options(told) for name, told in given.items()}
        for name in self.weights:
            self.options.setdefault(name, find(name).make_options({}))
        model = unwrap(model)
        # In a tuple: nn.Module would otherwise adopt the model and save its weights a second time.
        self._model = (model,)
        self.places = find_places(model, first, last)
        self._taken: Taken | None = None
        self.attention: dict[str, list[str]] = {}
        for name, needs in self._needs().items():
            if "attention" in needs:
                self.attention[name] = self._attention_names(name)
        self._switch, self._handles = listen(
            model, self._outputs(), self._listened_attention(), images="teacher" in self._all_needs()
        )
        self._teacher = self._make_teacher(teacher)
        self._make_parts(model, num_classes)

    def _needs(self) -> dict[str, frozenset[str]]:
        return {name: LOSSES[name].forms[self.forms[name]] for name in self.weights}

    def _all_needs(self) -> set[str]:
        return {need for needs in self._needs().values() for need in needs}

    def _attention_names(self, name: str) -> list[str]:
        loss, depth = LOSSES[name], len(self.places.blocks)
        blocks = list(range(depth))
        if loss.check is not None:
            blocks = loss.check(self.forms[name], self.options[name], depth)
        names = [f"{self.places.blocks[number]}.attn" for number in blocks]
        check_attention(self._model[0], names, name)
        return names

    def _listened_attention(self) -> list[str]:
        return sorted({name for names in self.attention.values() for name in names})

    def _outputs(self) -> set[str]:
        # The last block is always listened to, because it is what a padding mask is handed to.
        outputs = {self.places.last}
        for name, needs in self._needs().items():
            if needs & {"first", "embed"}:
                outputs.add(self._first_name(name))
            if needs & {"last", "normed", "teacher"}:
                outputs.add(self._last_name(name))
        return outputs

    def _first_name(self, loss: str) -> str:
        if "embed" not in self._needs()[loss]:
            return self.places.first
        if self.places.embed is None:
            raise UserError(f"{loss} form {self.forms[loss]!r} needs a model with patch_embed")
        return self.places.embed

    def _last_name(self, loss: str) -> str:
        normed = self.tokens == "norm" or (self.tokens == "auto" and "normed" in self._needs()[loss])
        return self.places.norm if normed and self.places.norm else self.places.last

    def _make_teacher(self, teacher: nn.Module | None) -> Teacher | None:
        wanting = [name for name, needs in self._needs().items() if "teacher" in needs]
        if not wanting:
            if teacher is not None:
                raise UserError("a teacher is given but no loss with a weight needs one")
            return None
        if not isinstance(teacher, nn.Module):
            raise UserError(f"{wanting[0]} compares with a frozen teacher: give teacher= a network")
        if unwrap(teacher) is self._model[0]:
            raise UserError("the teacher is the network itself: give a copy, which stays as it is")
        normed = {name for name in wanting if self._last_name(name) == self.places.norm}
        return Teacher(unwrap(teacher), block=len(normed) < len(wanting), norm=bool(normed))

    def _make_parts(self, model: nn.Module, num_classes: int | None) -> None:
        self.head: nn.Module | None = None
        for name in self.weights:
            loss = LOSSES[name]
            if loss.make_part is None:
                continue
            classes = num_classes if num_classes is not None else getattr(model, "num_classes", 0)
            width = width_of(model, self.places)
            if not classes or not width:
                raise UserError(
                    f"{name} needs a class count and the model's width; {type(model).__name__} has "
                    f"num_classes={classes}, num_features={width}"
                )
            part = loss.make_part(int(classes), width, self.forms[name])
            setattr(self, loss.part_name or name, part.to(next(model.parameters()).device))

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Record what the losses need of the forward passes inside the context; the last one counts."""
        self._taken = self._switch.taken = Taken()
        try:
            yield
        finally:
            self._switch.taken = None

    def remove(self) -> None:
        """Take the hooks off the model; this object cannot watch it any more."""
        for handle in self._handles:
            handle.remove()
        if self._teacher is not None:
            self._teacher.remove()

    def terms(self, labels: PatchLabels | Tensor | None = None) -> dict[str, Tensor]:
        """The losses of the last watched forward pass, by name, each a scalar without its weight.

        ``labels`` is needed for patch_mixing: ``PatchLabels`` from ``PatchMix``, or [B] or [B, K] labels when
        images were not cut, so that every patch has its image's. The record is dropped afterwards, to free
        its memory.

        Raises UserError without a watched forward pass, without needed labels, or when shapes do not fit.
        """
        taken = self._taken
        if taken is None or not (taken.outputs or taken.queries):
            raise UserError(
                "no forward pass was watched: call the model inside `with diversity.watch():` first"
            )
        try:
            return {
                name: LOSSES[name].compute(
                    _Watched(self, taken, name, labels), self.forms[name], self.options[name]
                )
                for name in self.weights
            }
        finally:
            self._taken = None

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms, a scalar to add to the main loss."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()


class _Watched:
    """What one loss sees of a watched forward pass; see ``loss.Seen``."""

    def __init__(
        self, owner: Diversity, taken: Taken, loss: str, labels: PatchLabels | Tensor | None
    ) -> None:
        self.owner, self.taken, self.loss, self.told = owner, taken, loss, labels

    def _patches(self, name: str) -> Tensor:
        model, places = self.owner._model[0], self.owner.places
        if name not in self.taken.outputs:
            raise UserError(f"{name} did not run in the watched forward pass: {self.loss} needs its tokens")
        return patches_of(model, places, name, self.taken.outputs[name])

    def first(self) -> Tensor:
        return self._patches(self.owner._first_name(self.loss))

    def last(self) -> Tensor:
        return self._patches(self.owner._last_name(self.loss))

    def teacher(self) -> Tensor:
        assert self.owner._teacher is not None
        normed = self.owner._last_name(self.loss) == self.owner.places.norm
        return self.owner._teacher.tokens(self.taken.images, normed)

    def grid(self) -> tuple[int, int] | None:
        last = self.taken.outputs[self.owner._last_name(self.loss)]
        first = self.taken.outputs.get(self.owner._first_name(self.loss))
        for tokens in (last, first):
            if tokens is not None and tokens.ndim == 4:
                return (tokens.shape[1], tokens.shape[2])
        embed = getattr(self.owner._model[0], "patch_embed", None)
        grid = getattr(embed, "grid_size", None)
        return (int(grid[0]), int(grid[1])) if grid is not None else None

    def attention(self, share: float) -> tuple[list[AttentionInputs], int]:
        names = self.owner.attention[self.loss]
        some = self.taken.queries[names[0]]
        count = max(1, round(share * some.shape[0]))
        # Drawn on the device's own generator: asking the CPU for it would make every step wait.
        images = torch.randperm(some.shape[0], device=some.device)[:count] if count < some.shape[0] else None
        model = self.owner._model[0]
        found = [attention_inputs(model, name, self.taken, images) for name in names]
        return found, self.owner.places.prefix_at(self.owner.places.last)

    def labels(self, classes: int) -> PatchLabels:
        if self.told is None:
            raise UserError(
                f"{self.loss} needs labels: terms(labels) with PatchMix's patches, or class labels"
            )
        if isinstance(self.told, PatchLabels):
            return self.told
        return PatchLabels.whole(soft_labels(self.told, classes), (1, self.last().shape[1]))

    def part(self) -> nn.Module:
        part = getattr(self.owner, LOSSES[self.loss].part_name or self.loss)
        assert isinstance(part, nn.Module)
        return part


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The losses that are on, by name; raises UserError for unknown names, negative or non-finite weights."""
    for name, weight in weights.items():
        find(name)
        if not 0 <= weight < float("inf"):
            raise UserError(f"weight of {name} is {weight}: must be 0 (off) or a positive number")
    return {name: float(weight) for name, weight in weights.items() if weight > 0}


def _check_forms(forms: Mapping[str, str]) -> dict[str, str]:
    for name, form in forms.items():
        find(name).check_form(form)
    return {name: forms.get(name, next(iter(loss.forms))) for name, loss in LOSSES.items()}
