"""The cheap metrics on fixed images every n steps, for any training loop; warns once about collapse."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deepvit.capturing import capture
from deepvit.collapse import collect
from deepvit.collapse.catalogue import KINDS, METRICS
from deepvit.collapse.findings import RESTS_ON
from deepvit.collapse.gradients import MEASURED, patch_gradients
from deepvit.collapse.plan import Plan
from deepvit.collapse.results import Verdict
from deepvit.collapse.rows import Row, rows_of
from deepvit.collapse.stream import Batch, Pass, evaluating
from deepvit.collapse.verdict import decide
from deepvit.errors import UserError
from deepvit.layers.blocks import parse_blocks

# One number a block would bury a training log: depth is summed up by its deeper half and its last block.
LOGGED = (
    "attention_similarity",
    "attention_similarity_centred",
    "entropy",
    "patch_similarity",
    "rank_one_distance",
)
# What is logged, and what the verdict rests on and judges by.
_TAKEN = frozenset({*LOGGED, "map_contrast", *(key for keys in RESTS_ON.values() for key in keys)})


class CollapseWarning(UserWarning):
    """Attention collapse has set in during training: ``verdict`` in parts, and the ``step``, if there is one.

    The line that it prints is short; the whole verdict is what ``deepvit.diagnose`` writes.
    """

    def __init__(self, verdict: Verdict, step: int | None = None) -> None:
        self.verdict, self.step = verdict, step
        self.numbers = {} if verdict.main is None else verdict.main.numbers
        super().__init__(verdict, step)

    def __str__(self) -> str:
        at = "" if self.step is None else f" at step {self.step}"
        numbers = (
            f"{METRICS[key].title.lower()} {means['here']:.2f}"
            for key, means in self.numbers.items()
            if key in METRICS
        )
        answers = ", ".join(f"{cure.name} ({cure.blocks})" for cure in self.verdict.cures[:3])
        words = f"Collapse{at}: {KINDS[self.verdict.kind]} from block {self.verdict.from_block} on; "
        return words + "; ".join([*numbers, f"what answers it: {answers}"])


class CollapseProbe:
    """Measures a model in training on fixed images every ``every`` steps; three lines in any loop::

        probe = CollapseProbe(model, images, every=500)
        for step, batch in enumerate(loader):
            ...
            for name, value in probe(step).items():
                writer.add_scalar(name, value, step)

    A measurement is one forward pass in evaluation mode without gradients, with attention on about
    ``attention_images`` of the images, and one forward and backward pass over these for the gradients that reach
    each block's patches (``collapse.gradients``). What it did cost is in ``seconds`` (the latest), ``total_seconds``, and
    logged as ``collapse/seconds``. The model's modes, gradients and random state are as before.

    Args:
        model: the model in training; any that ``deepvit.capture`` can watch (not the compiled wrapper).
        images: float images [B, C, h, w], preprocessed as for training; 8 to 64 are enough.
        every: steps between measurements; the first is at step 0.
        blocks: blocks to measure, as in ``"last:6"``; ``None`` is all.
        attention_images: about how many of the images attention and gradients are measured on; tokens on all.
        gradients: whether to measure gradients.

    Raises:
        UserError: no attention found, blocks out of range, or no images.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        every: int = 500,
        blocks: str | int | Sequence[int] | None = None,
        attention_images: int = 8,
        gradients: bool = True,
    ) -> None:
        if images.ndim != 4 or len(images) == 0:
            raise UserError(
                f"probe images must be [B, C, height, width] with B >= 1, not {tuple(images.shape)}"
            )
        if every < 1 or attention_images < 1:
            raise UserError(f"every={every} and attention_images={attention_images} must be at least 1")
        self.model, self.images, self.every, self.blocks = model, images, every, blocks
        self.attention_images = min(attention_images, len(images))
        self.gradients = gradients
        self.verdict: Verdict | None = None
        self.warned = False
        self.seconds = self.total_seconds = 0.0
        self._rows: list[Row] | None = None

    def __call__(self, step: int) -> dict[str, float]:
        """Numbers to log at this step by name, from ``collapse/``; empty between measurements."""
        return self.measure(step) if step % self.every == 0 else {}

    def measure(self, step: int | None = None) -> dict[str, float]:
        """Measure now. Warns once, with ``CollapseWarning``, when the verdict first says collapse."""
        started = time.perf_counter()
        with evaluating(self.model):
            if self._rows is None:
                self._rows = self._find_rows()
            for row in self._rows:
                row.facts.mixed = False
            # Attention on the first images only: no ranks and no CKA, which cost most.
            every = max(1, len(self.images) // self.attention_images)
            plan = Plan(
                attention_every=every,
                rank_every=0,
                alignment_tokens=0,
                attention_chunk=8,
                token_chunk=64,
                metrics=_TAKEN,
            )
            measured = Pass(self.model, self._rows, plan)
            numbers = list(range(len(self.images)))
            measured.run(Batch(self.images, numbers, ["" for _ in numbers]))
            pushed = self._gradients(self.images[::every]) if self.gradients else {}
        series = collect.all_series(measured.attention, measured.tokens)
        shares = collect.shares(measured.attention, measured.tokens)
        facts = [row.facts for row in self._rows]
        self.verdict = decide(facts, series, shares)
        logged: dict[str, float] = {}
        for key in LOGGED:
            values = series[key].values if key in series else []
            deep = [value for value in values[len(values) // 2 :] if value is not None]
            if deep:
                logged[f"collapse/{key}/deep"] = sum(deep) / len(deep)
                logged[f"collapse/{key}/last"] = deep[-1]
        for key, by_row in pushed.items():
            deep = [value for row, value in by_row.items() if row >= len(self._rows) // 2]
            if deep:
                logged[f"collapse/{key}/deep"] = sum(deep) / len(deep)
                logged[f"collapse/{key}/last"] = deep[-1]
        similar = collect.similar(self._rows, series, shares)
        logged["collapse/similar_blocks"] = float(len(similar.blocks))
        if self.verdict.collapsed and not self.warned:
            self.warned = True
            warnings.warn(CollapseWarning(self.verdict, step), stacklevel=2)
        self.seconds = time.perf_counter() - started
        self.total_seconds += self.seconds
        logged["collapse/seconds"] = self.seconds
        return logged

    def _gradients(self, images: Tensor) -> dict[str, dict[int, float]]:
        """Name → row → mean over images, of the rows that a gradient reaches; nothing, said once, where there is none."""
        assert self._rows is not None
        try:
            found = patch_gradients(self.model, self._rows, images)
        except RuntimeError as error:
            self.gradients = False
            warnings.warn(f"gradients are not measured: {str(error).splitlines()[0]}", stacklevel=4)
            return {}
        means: dict[str, dict[int, float]] = {}
        for key, function in MEASURED.items():
            values = {number: float(function(gradient).mean()) for number, gradient in sorted(found.items())}
            means[key] = {number: value for number, value in values.items() if math.isfinite(value)}
        return means

    def _find_rows(self) -> list[Row]:
        parameter = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        if parameter is not None:
            self.images = self.images.to(parameter.device, parameter.dtype)
        with torch.no_grad(), capture(self.model, attention=False, on_tokens=lambda *_: None) as seen:
            self.model(self.images[:1])
        numbers = None if self.blocks is None else parse_blocks(self.blocks, len(seen.blocks))
        if numbers is not None and not numbers:
            raise UserError(f"blocks={self.blocks!r} chooses none of the {len(seen.blocks)} blocks")
        return rows_of(seen, self.model, numbers)
