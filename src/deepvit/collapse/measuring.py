"""Measuring: a model and images in, ``Measurements`` out. No words and no files: those are the report's."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing import Seen, capture
from deepvit.collapse import collect, states
from deepvit.collapse.chosen import ChosenMaps
from deepvit.collapse.lesions import lines
from deepvit.collapse.lesions.effects import Lesions
from deepvit.collapse.lesions.kept import Kept
from deepvit.collapse.lesions.measuring import MODES, Mode, measure_lesions
from deepvit.collapse.lesions.score import Score
from deepvit.collapse.metrics.cross import SIMILAR_RULE
from deepvit.collapse.metrics.tokens import HIGH_NORM_FACTOR
from deepvit.collapse.plan import Plan, make_plan
from deepvit.collapse.results import Measurements
from deepvit.collapse.rows import Row, rows_of
from deepvit.collapse.stream import Batch, Pass, batches, evaluating
from deepvit.collapse.verdict import decide
from deepvit.errors import UserError
from deepvit.layers.blocks import parse_blocks

# With lesions on "auto": this much of the plain diagnosis's time for them, or so many seconds, whichever is more.
TIMES, LEAST_SECONDS = 2.2, 4.0


def measure(
    model: nn.Module,
    loader: Iterable[Any],
    images: int | None = 256,
    blocks: str | int | Sequence[int] | None = None,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    progress: bool = False,
    attention_images: int = 64,
    maps: int = 4,
    lesions: Mode = "off",
    score: Score | None = None,
) -> Measurements:
    """Measure attention collapse of any Vision Transformer on images, and what each of its blocks is worth.

    The arguments are those of ``deepvit.diagnose``, which also makes words and files of what this measures.
    The model runs in evaluation mode, without gradients, once over the images; every module is then again
    in the mode that it was in. Tokens are measured on all images, attention on ``attention_images`` of them
    spread evenly; what was sampled is in ``provenance``. Memory does not grow with the number of images, except for
    lesions, which keep the images that they are done on (``KEPT_IMAGES`` at most; with "full" all).

    Raises:
        UserError: no attention over tokens found, blocks out of range, no image, or a model whose tokens
            are NaN.
    """
    if (images is not None and images < 1) or attention_images < 1 or maps < 0:
        raise UserError(
            f"images={images}, attention_images={attention_images}: at least 1 each; maps={maps}: at least 0"
        )
    if lesions not in MODES:
        raise UserError(f"lesions={lesions!r}: choose {', '.join(MODES)}")
    started = time.perf_counter()
    with evaluating(model):
        stream = batches(loader, images, class_names)
        first = next(stream, None)
        if first is None:
            raise UserError("the loader gives no images" + _complaints(loader))
        rows, seen = probe(model, first.images[:1], blocks)
        total = images if (known := _count(loader)) is None else min(known, images or known)
        plan = make_plan(rows, total, attention_images)
        chosen = ChosenMaps(rows, plan, total, maps, normalize)
        measured = Pass(model, rows, plan, chosen)
        kept = Kept(lesions, total)
        with _bar(progress, total) as done:
            for batch in itertools.chain([first], stream):
                measured.run(batch, done)
                kept.take(batch)
        plain = time.perf_counter() - started
        found = None
        if lesions != "off":
            seconds = max(TIMES * plain, LEAST_SECONDS) if lesions == "auto" else None
            with _bar(progress, 100, "lesions", "%") as done:
                found = measure_lesions(
                    model,
                    rows,
                    kept.images(),
                    kept.targets(),
                    seconds=seconds,
                    score=score,
                    done=_to_share(done),
                )
    results = _measurements(model, name, rows, measured, first, found)
    if found is not None:
        results.provenance["thresholds"] |= {"lesions": lines.STATED}
        results.provenance["seconds_without_lesions"] = round(plain, 2)
    results.provenance |= {
        "unreadable": [str(text) for text in getattr(loader, "skipped", [])],
        "seconds": round(time.perf_counter() - started, 2),
        "sampling": _sampling(plan, rows),
        "skipped": [[skip.module, skip.reason] for skip in seen.skipped],
        "capture": list(seen.notes),
    }
    return results


def probe(
    model: nn.Module, image: Tensor, blocks: str | int | Sequence[int] | None
) -> tuple[list[Row], Seen]:
    """One image through the model: which blocks it has, and their shapes."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    to: dict[str, Any] = {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}

    def look(only: Sequence[int] | None) -> Seen:
        with (
            torch.no_grad(),
            capture(model, blocks=only, attention=False, on_tokens=lambda *_: None) as found,
        ):
            model(image.to(**to))
        return found

    try:
        seen = look(None)
    except UserError:
        # Some blocks cannot be read: those that were asked for may be others.
        if (asked := _by_number(blocks)) is None:
            raise
        seen = look(asked)
    numbers = None if blocks is None else parse_blocks(blocks, len(seen.blocks))
    if numbers is not None and not numbers:
        raise UserError(f"blocks={blocks!r} chooses none of the {len(seen.blocks)} blocks; try all or last:4")
    return rows_of(seen, model, numbers), seen


# No network has so many.
_MOST_BLOCKS = 10_000


def _by_number(blocks: str | int | Sequence[int] | None) -> list[int] | None:
    """Blocks that are told without the depth of the network; None for such as "last:4"."""
    if blocks is None or (isinstance(blocks, str) and set(blocks) - set("0123456789,- ")):
        return None
    return parse_blocks(blocks, _MOST_BLOCKS) or None


def _measurements(
    model: nn.Module,
    name: str | None,
    rows: Sequence[Row],
    measured: Pass,
    first: Batch,
    lesions: Lesions | None,
) -> Measurements:
    series = collect.all_series(measured.attention, measured.tokens)
    shares = collect.shares(measured.attention, measured.tokens)
    facts = [row.facts for row in rows]
    plan = measured.plan
    return Measurements(
        name=name or type(model).__name__,
        model={
            "class": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "input": list(first.images.shape[1:]),
        },
        blocks=facts,
        series=series,
        per_head=collect.per_head(measured.attention),
        matrices=collect.all_matrices(measured.attention, measured.tokens),
        similar=collect.similar(rows, series, shares),
        verdict=decide(facts, series, shares, lesions),
        provenance={
            "images": measured.images,
            "attention_images": measured.attention_images,
            "rank_images": series["token_rank"].images if "token_rank" in series else 0,
            "plan": asdict(plan),
            "thresholds": {
                "similar": SIMILAR_RULE,
                "alike_centred": states.ALIKE_CENTRED,
                "uniform_share_of_keys": states.UNIFORM_SHARE_OF_KEYS,
                "untrained_share_of_keys": states.UNTRAINED_SHARE_OF_KEYS,
                "sharp_keys": states.SHARP_KEYS,
                "patches_alike": states.PATCHES_ALIKE,
                "high_norm_factor": HIGH_NORM_FACTOR,
            },
            "shares_of_images": shares,
            "largest_check_error": max(measured.worst_check.values(), default=None),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "device": str(next((p.device for p in model.parameters()), "cpu")),
        },
        maps=measured.chosen.images if measured.chosen else [],
        lesions=lesions,
    )


def _sampling(plan: Plan, rows: Sequence[Row]) -> dict[str, Any]:
    """What was not taken whole: columns compared and of how many, patches of an image, rows of a map."""
    sampled = [row for row in rows if row.facts.group is not None and not plan.columns(row).exact]
    return {
        "columns": [len(plan.columns(sampled[0]).index), sampled[0].keys] if sampled else None,
        "patches": plan.patch_limit if any(row.patches > plan.patch_limit for row in rows) else None,
        "map_rows": plan.rank_rows if any(row.layout.queries > plan.rank_rows for row in rows) else None,
    }


def _count(loader: Any) -> int | None:
    """How many images a loader has, if it says so."""
    dataset = getattr(loader, "dataset", None)
    try:
        if dataset is not None:
            return len(dataset)
        size = getattr(loader, "batch_size", None)
        if isinstance(size, int) and hasattr(loader, "__len__"):
            return size * len(loader)
    except TypeError:
        # An iterable data set has no length.
        return None
    if isinstance(loader, list | tuple) and all(isinstance(item, Tensor) for item in loader):
        return sum(len(item) for item in loader)
    return None


def _complaints(loader: Iterable[Any]) -> str:
    skipped = list(getattr(loader, "skipped", []))
    return f": {len(skipped)} could not be read, the first: {skipped[0]}" if skipped else ""


def _to_share(advance: Callable[[int], None]) -> Callable[[float], None]:
    """Told a share of the work, advances a bar of 100."""
    reached = 0

    def done(share: float) -> None:
        nonlocal reached
        step = int(100 * share) - reached
        reached += step
        advance(step)

    return done


@contextmanager
def _bar(
    show: bool, total: int | None, what: str = "measuring", unit: str = "images"
) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; calls advance it by images."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
