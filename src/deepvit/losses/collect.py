"""The losses of patch diversification for somebody's training loop: listen to a model, then ask for the
terms."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from deepvit.errors import UserError
from deepvit.losses.attention import ATTENTION_FORMS, AttentionInputs, attention_cosine
from deepvit.losses.diversity import (
    CONTRASTIVE_FORMS,
    COSINE_FORMS,
    patch_contrastive,
    patch_cosine,
    patch_tokens,
)
from deepvit.losses.intermediates import (
    Taken,
    attention_inputs,
    check_attention,
    find_places,
    listen,
    unwrap,
)
from deepvit.losses.mixing import MIXING_FORMS, PatchHead, PatchLabels, soft_labels

FORMS: dict[str, tuple[str, ...]] = {
    "patch_cosine": COSINE_FORMS,
    "patch_contrastive": CONTRASTIVE_FORMS,
    "patch_mixing": MIXING_FORMS,
    "attention_cosine": ATTENTION_FORMS,
}
"""Loss names, each with its forms; the first form is the default."""

PAPER_WEIGHTS = {"patch_cosine": 1.0, "patch_contrastive": 1.0, "patch_mixing": 1.0}
"""Equal weights, α = 1 each. (The official code has 1 for the two of these losses that it contains.)"""

OFFICIAL_PAIRS = 12


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
    of the first and last block of the last stage, whose grids agree. By default (``tokens="auto"``) the
    cosine and contrastive losses take h[L] as the block gives it, which is what a collapse report measures,
    and the mixing head reads the tokens after the model's final norm, as the class head does. ``"block"`` or
    ``"norm"`` says it for all three. (A model that pools first and norms after has no final norm over tokens:
    block output it is.) The first token of ``patch_contrastive``'s official form is the output of
    ``patch_embed``.

    Args:
        model: any timm ViT or Swin, compiled or wrapped or not; any other module, with ``first`` and
            ``last``.
        weights: loss name → weight, at least 0; names with weight 0 are not computed. Default:
            ``PAPER_WEIGHTS``.
        forms: loss name → form, where another than the default is wanted.
        num_classes: classes of the mixing head; by default the model's own.
        tokens: "auto", "block" or "norm", see above.
        first, last: module names that override where h[1] and h[L] are taken.
        attention_blocks: block numbers for attention_cosine; by default the last four ("columns") or the
            first thirteen, which make twelve pairs ("official").
        attention_images: share of a batch's images that attention_cosine looks at, drawn anew each step (at
            least one image). Its maps cost more than all other terms together; a quarter keeps the step
            within 3%.

    Raises UserError for unknown names or forms, negative weights, and models it finds no patch tokens in.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, float] | None = None,
        *,
        forms: Mapping[str, str] | None = None,
        num_classes: int | None = None,
        tokens: str = "auto",
        first: str | None = None,
        last: str | None = None,
        attention_blocks: Sequence[int] | None = None,
        attention_images: float = 0.25,
    ) -> None:
        super().__init__()
        self.weights = check_weights(PAPER_WEIGHTS if weights is None else weights)
        self.forms = _check_forms(forms or {})
        if tokens not in ("auto", "block", "norm"):
            raise UserError(f"tokens={tokens!r}: choose from auto, block, norm")
        if not 0 < attention_images <= 1:
            raise UserError(f"attention_images={attention_images}: must be above 0 and at most 1")
        self.tokens, self.attention_images = tokens, attention_images
        model = unwrap(model)
        # In a tuple: nn.Module would otherwise adopt the model and save its weights a second time.
        self._model = (model,)
        self.places = find_places(model, first, last)
        self._taken: Taken | None = None
        self.attention = self._attention_names(attention_blocks)
        check_attention(model, self.attention)
        self._switch, self._handles = listen(model, self._outputs(), self.attention)
        self.head: PatchHead | None = None
        if "patch_mixing" in self.weights:
            classes = num_classes if num_classes is not None else getattr(model, "num_classes", 0)
            width = getattr(model, "num_features", None) or getattr(model, "embed_dim", None)
            if not classes or not width:
                raise UserError(
                    f"patch_mixing needs a class count and the model's width; {type(model).__name__} has "
                    f"num_classes={classes}, num_features={width}"
                )
            self.head = PatchHead(int(width), int(classes), self.forms["patch_mixing"])
            self.head.to(next(model.parameters()).device)

    def _attention_names(self, blocks: Sequence[int] | None) -> list[str]:
        if "attention_cosine" not in self.weights:
            return []
        depth = len(self.places.blocks)
        if blocks is None:
            official = self.forms["attention_cosine"] == "official"
            blocks = range(min(OFFICIAL_PAIRS + 1, depth)) if official else range(max(0, depth - 4), depth)
        if len(blocks) < 2:
            raise UserError(f"attention_cosine compares neighbouring blocks and was given {list(blocks)}")
        for number in blocks:
            if not 0 <= number < depth:
                raise UserError(
                    f"attention_cosine: there is no block {number} in {depth} blocks (0 to {depth - 1})"
                )
        return [f"{self.places.blocks[number]}.attn" for number in sorted(blocks)]

    def _outputs(self) -> set[str]:
        places, names = self.places, set(self.weights)
        outputs = {self._first_name()} if "patch_contrastive" in names else set()
        if names & {"patch_cosine", "patch_contrastive", "patch_mixing"}:
            outputs |= {places.last} | ({places.norm} if places.norm else set())
        return outputs

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

    def _first_name(self) -> str:
        if self.forms["patch_contrastive"] != "official":
            return self.places.first
        if self.places.embed is None:
            raise UserError("patch_contrastive form 'official' needs a model with patch_embed")
        return self.places.embed

    def _last_tokens(self, loss: str) -> Tensor:
        assert self._taken is not None
        normed = self.tokens == "norm" or (self.tokens == "auto" and loss == "patch_mixing")
        name = self.places.norm if normed and self.places.norm else self.places.last
        return self._taken.outputs[name]

    def terms(self, labels: PatchLabels | Tensor | None = None) -> dict[str, Tensor]:
        """The losses of the last watched forward pass, by name, each a scalar without its weight.

        ``labels`` is needed for patch_mixing: ``PatchLabels`` from ``PatchMix``, or [B] or [B, K] labels when
        images were not cut, so that every patch has its image's. The record is dropped afterwards, to free
        its memory.

        Raises UserError without a watched forward pass, without needed labels, or when shapes do not fit.
        """
        if self._taken is None or not (self._taken.outputs or self._taken.queries):
            raise UserError(
                "no forward pass was watched: call the model inside `with diversity.watch():` first"
            )
        compute: dict[str, Callable[[], Tensor]] = {
            "patch_cosine": self._cosine,
            "patch_contrastive": self._contrastive,
            "patch_mixing": lambda: self._mixing(labels),
            "attention_cosine": self._attention,
        }
        try:
            return {name: compute[name]() for name in self.weights}
        finally:
            self._taken = None

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms, a scalar to add to the main loss."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def _cosine(self) -> Tensor:
        tokens = self._last_tokens("patch_cosine")
        return patch_cosine(tokens, self.forms["patch_cosine"], prefix_tokens=self.places.prefix)

    def _contrastive(self) -> Tensor:
        assert self._taken is not None
        form = self.forms["patch_contrastive"]
        first = self._taken.outputs[self._first_name()]
        # The patch embedding has no prefix tokens yet; a block's output has.
        first = patch_tokens(first, 0 if form == "official" else self.places.prefix)
        last = self._last_tokens("patch_contrastive")
        grid = (last.shape[1], last.shape[2]) if last.ndim == 4 else self._grid()
        return patch_contrastive(first, patch_tokens(last, self.places.prefix), form, grid=grid)

    def _grid(self) -> tuple[int, int] | None:
        embed = getattr(self._model[0], "patch_embed", None)
        grid = getattr(embed, "grid_size", None)
        return (int(grid[0]), int(grid[1])) if grid is not None else None

    def _mixing(self, labels: PatchLabels | Tensor | None) -> Tensor:
        assert self.head is not None
        if labels is None:
            raise UserError(
                "patch_mixing needs labels: terms(labels) with PatchMix's patches, or class labels"
            )
        tokens = patch_tokens(self._last_tokens("patch_mixing"), self.places.prefix)
        if isinstance(labels, Tensor):
            labels = PatchLabels.whole(soft_labels(labels, self.head.num_classes), (1, tokens.shape[1]))
        loss: Tensor = self.head(tokens, labels)
        return loss

    def _attention(self) -> Tensor:
        assert self._taken is not None
        model, taken = self._model[0], self._taken
        some = taken.queries[self.attention[0]]
        count = max(1, round(self.attention_images * some.shape[0]))
        # Drawn on the device's own generator: asking the CPU for it would make every step wait.
        images = torch.randperm(some.shape[0], device=some.device)[:count] if count < some.shape[0] else None
        blocks: list[Tensor | AttentionInputs] = []
        for name in self.attention:
            blocks.append(attention_inputs(model, name, taken, images))
        return attention_cosine(blocks, self.forms["attention_cosine"], prefix_tokens=self.places.prefix)


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The losses that are on, by name; raises UserError for unknown names, negative or non-finite weights."""
    for name, weight in weights.items():
        if name not in FORMS:
            raise UserError(f"there is no diversity loss {name!r}; choose from {', '.join(FORMS)}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"weight of {name} is {weight}: must be 0 (off) or a positive number")
    return {name: float(weight) for name, weight in weights.items() if weight > 0}


def _check_forms(forms: Mapping[str, str]) -> dict[str, str]:
    for name, form in forms.items():
        if name not in FORMS:
            raise UserError(f"there is no diversity loss {name!r}; choose from {', '.join(FORMS)}")
        if form not in FORMS[name]:
            raise UserError(f"{name} has no form {form!r}; choose from {', '.join(FORMS[name])}")
    return {name: forms.get(name, choices[0]) for name, choices in FORMS.items()}
