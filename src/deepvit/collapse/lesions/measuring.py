"""Lesions of a network on images, within a time: what each block is worth to the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deepvit import capturing as cap
from deepvit.capturing import Anatomy
from deepvit.collapse.lesions import together
from deepvit.collapse.lesions.answers import Reader, ToldApart, answer_of, input_of_head, reader_of
from deepvit.collapse.lesions.budget import Budget, memory_chunk
from deepvit.collapse.lesions.catalogue import LESIONS
from deepvit.collapse.lesions.effects import Lesions
from deepvit.collapse.lesions.labels import agreeing_score
from deepvit.collapse.lesions.prefix import Prefix
from deepvit.collapse.lesions.score import Score, usual_score
from deepvit.collapse.lesions.trials import Trial, trial_of_set, trials_of
from deepvit.collapse.rows import Row
from deepvit.errors import UserError

Mode = Literal["auto", "off", "full"]
MODES = ("auto", "off", "full")


def measure_lesions(
    model: nn.Module,
    rows: Sequence[Row],
    images: Tensor,
    targets: Any = None,
    *,
    seconds: float | None = None,
    score: Score | None = None,
    kinds: Sequence[str] | None = None,
    done: Callable[[float], None] = lambda share: None,
) -> Lesions:
    """Take parts of a network away, one by one and together, and measure what that does to its answers.

    The model must be in evaluation mode. Effects are those of ``effects.Effect``; all rest on the same images.

    Args:
        model: any that :func:`deepvit.capturing.survey` reads.
        rows: its blocks, of ``rows_of`` on images of this size.
        images: [n, 3, h, w], on the model's device or not.
        targets: of the images in the same order, or None. Labels that the network's answers do not agree with
            better than chance are not those of its classes, and are left out (a note says so).
        seconds: the time to stay within, by fewer images and kinds of lesions (``exit`` and ``block`` always);
            ``None``: everything.
        score: what of the targets is measured; by default accuracy for labels, mIoU for masks.
        kinds: keys of ``catalogue.LESIONS``; by default all.
        done: told the share of the work that is done.

    Returns:
        ``Lesions``; one with ``failed`` and no effects where the network cannot be surveyed, has no answer that can be
        read, or fails the control (maps and patches replaced by themselves must not change it).
    """
    started = time.perf_counter()
    found = Lesions(available=len(images), budget="full" if seconds is None else "auto")
    budget = Budget(seconds, started)
    try:
        work = _Work(model, rows, images, found)
    except UserError as error:
        found.failed = str(error)
    else:
        work.run(targets, score, list(LESIONS) if kinds is None else list(kinds), budget, done)
    found.seconds = round(time.perf_counter() - started, 2)
    return found


class _Work:
    """One network with what is kept of it."""

    def __init__(self, model: nn.Module, rows: Sequence[Row], images: Tensor, found: Lesions) -> None:
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.to: dict[str, Any] = (
            {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}
        )
        self.model, self.rows, self.images, self.found = model, rows, images, found
        two = images[:2].to(**self.to)
        self.anatomy: Anatomy = cap.survey(model, two[:1])
        with torch.no_grad():
            output = model(two)
        self.reader: Reader = reader_of(model, output)
        self.classes = answer_of(output).shape[1]
        found.measure, found.task = self.reader.measure, self.reader.task
        found.control = cap.control(self.anatomy, two)
        self.prefix = Prefix(self.anatomy)
        self.prefix.check(two)
        found.prefix_kept = self.prefix.usable
        self.chunk = memory_chunk(self.prefix.bytes_per_image(two[:1]), self.rows)
        self.trials: list[Trial] = []
        self.intact = Trial("", [], [], 0, 1.0)
        self.per_cost = 0.0  # seconds of an intact pass over all images, as the single lesions took it

    def run(
        self,
        targets: Any,
        score: Score | None,
        kinds: list[str],
        budget: Budget,
        done: Callable[[float], None],
    ) -> None:
        """Single lesions, then sets of blocks, all on the same images."""
        found = self.found
        if targets is not None and not self._has_classes_of(targets):
            targets = None
            found.notes.append("labels")
        score = None if targets is None else score or usual_score(self.reader.task, targets)
        by_kind: dict[str, list[Trial]] = {}
        for key in LESIONS:  # in the order of the catalogue
            if key in kinds:
                by_kind[key], refused = trials_of(LESIONS[key], self.anatomy, self.rows, self.prefix)
                found.refused += refused
        pace = budget.pace(lambda n: self._forward(self.images[:n]), min(16, self.chunk, len(self.images)))
        costs = {key: [trial.cost for trial in trials] for key, trials in by_kind.items()}
        kept, count = budget.choose(costs, len(self.images), pace, self.chunk)
        found.left_out = [key for key in by_kind if key not in kept and by_kind[key]]
        self.trials = [trial for key in kept for trial in by_kind[key]]
        chosen = _spread(len(self.images))
        self.round = min(self.chunk, budget.chunk(count, pace))
        began = time.perf_counter()
        numbers = self._measure(self.trials, chosen, targets, score, budget, lambda share: done(0.8 * share))
        passes = 1 + sum(trial.cost for trial in self.trials)
        self.per_cost = (time.perf_counter() - began) / passes
        found.images = len(numbers)
        found.told_apart = self.apart.value()
        score = agreeing_score(self.intact, score, targets, numbers, found)
        found.effects = [trial.effect(score) for trial in self.trials if trial.distances]
        self._together(targets, score, numbers, budget)
        self.prefix.forget()
        done(1.0)

    def _together(self, targets: Any, score: Score | None, numbers: list[int], budget: Budget) -> None:
        """Sets of blocks that may go together."""
        order = [e.blocks[0] for e in self.found.effects if e.lesion == "block"]
        sets = together.sets_to_try(self.found, order)
        trials = [trial_of_set(blocks, self.rows, self.prefix) for blocks in sets]
        # They run after the intact network has run once more; the first is the one that is most likely to matter.
        trials = trials[
            : budget.fitting(
                [1 + trial.cost if n == 0 else trial.cost for n, trial in enumerate(trials)], self.per_cost
            )
        ]
        if trials:
            self._measure(trials, numbers, targets, score, None, lambda share: None)
            self.found.effects += [trial.effect(score) for trial in trials if trial.distances]

    def _measure(
        self,
        trials: list[Trial],
        numbers: list[int],
        targets: Any,
        score: Score | None,
        budget: Budget | None,
        done: Callable[[float], None],
    ) -> list[int]:
        """Run trials on these images, chunk by chunk; returns the images that the time allowed."""
        first = budget is not None
        if first:
            self.apart = ToldApart(self.reader)
        size = self.chunk if budget is None else self.round
        for start in range(0, len(numbers), size):
            part = numbers[start : start + size]
            chunk_started = time.perf_counter()
            batch, labels = self.images[part].to(**self.to), _take(targets, part)
            with self.prefix.keeping():
                answer, intact = self._answer(batch)
            if first:
                self.apart.add(intact)
                self.intact.take(self.reader, intact, intact, answer, labels, score)
            for trial in list(trials):
                if budget is not None and not trial.distances and budget.is_over(trial.key):
                    trials.remove(trial)  # slower than it looked: the rest of the first round is left out
                    self.found.left_out += [trial.key] if trial.key not in self.found.left_out else []
                    continue
                self._try(trial, trials, batch, intact, labels, score)
            end = start + len(part)
            done(max(end / len(numbers), 0.0 if budget is None else budget.share()))
            if budget is not None and not budget.allows(time.perf_counter() - chunk_started):
                return numbers[:end]
        return numbers

    def _try(
        self,
        trial: Trial,
        trials: list[Trial],
        batch: Tensor,
        intact: Tensor,
        labels: Any,
        score: Score | None,
    ) -> None:
        """One lesion on one chunk; what the network does not allow is taken off the list, with the reason."""
        try:
            with self.prefix.instead(trial.kept), cap.intervene(self.anatomy, *trial.lesions):
                answer, lesioned = self._answer(batch)
        except UserError as error:
            trials.remove(trial)
            trial.distances.clear()
            name, reason = next(r.key for r in self.rows if r.facts.index == trial.blocks[0]), str(error)
            self.found.refused.append([trial.key, reason if name in reason else f"{name}: {reason}"])
            return
        trial.take(self.reader, intact, lesioned, answer, labels, score)

    def _has_classes_of(self, targets: Any) -> bool:
        """Whether labels [n] are among the numbers of the network's classes."""
        labels = isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point()
        if self.reader.task != "classification" or not labels:
            return True
        return int(targets.min()) >= 0 and int(targets.max()) < self.classes

    def _answer(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The network's bare answer, and what is compared of it."""
        with input_of_head(self.model, self.reader) as before:
            answer = self._forward(batch)
        return answer, self.reader.read(before[0] if self.reader.head else answer)

    def _forward(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            return answer_of(self.model(batch.to(**self.to)))


def _spread(total: int) -> list[int]:
    """All images in an order of which every beginning is spread over them (data sets are sorted by class)."""
    golden = (5**0.5 - 1) / 2
    return sorted(range(total), key=lambda number: number * golden % 1)


def _take(targets: Any, numbers: Sequence[int]) -> Any:
    """The targets of some images."""
    if targets is None:
        return None
    if isinstance(targets, Tensor):
        return targets[list(numbers)]
    return [targets[number] for number in numbers]
