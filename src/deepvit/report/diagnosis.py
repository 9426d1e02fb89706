"""``deepvit.diagnose``: from a model and images to measurements, a verdict and a report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepvit.capturing import Seen, capture
from deepvit.collapse import collect, states
from deepvit.collapse.chosen import ChosenMaps
from deepvit.collapse.metrics.cross import SIMILAR_RULE
from deepvit.collapse.metrics.tokens import HIGH_NORM_FACTOR
from deepvit.collapse.plan import Plan, make_plan
from deepvit.collapse.results import Measurements, Verdict
from deepvit.collapse.rows import Row, rows_of
from deepvit.collapse.stream import Batch, Pass, batches, evaluating
from deepvit.collapse.verdict import decide
from deepvit.errors import UserError
from deepvit.layers.blocks import parse_blocks
from deepvit.report.sections import Section
from deepvit.report.write import write_report


@dataclass
class Report:
    """What ``deepvit.diagnose`` returns: the measurements, and the files that were written."""

    measurements: Measurements
    files: list[Path] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, Any]:
        """Everything that was measured as plain JSON values, as in ``collapse.json`` (without image maps)."""
        return self.measurements.to_dict(maps=False)

    @property
    def verdict(self) -> Verdict:
        """The verdict: ``.kind``, ``.text``, ``.from_block``, ``.cures``, ``.sureness``."""
        return self.measurements.verdict


def diagnose(
    model: nn.Module,
    loader: Iterable[Any],
    out: str | os.PathLike[str] | None = None,
    images: int | None = 256,
    blocks: str | int | Sequence[int] | None = None,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    figures: bool = False,
    progress: bool = True,
    attention_images: int = 64,
    maps: int = 4,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = (),
    foremost: Sequence[str] = (),
) -> Report:
    """Measure attention collapse of any Vision Transformer on images, and say what it means.

    The model runs in evaluation mode, without gradients, once over the images; every module is then again
    in the mode that it was in. Tokens are measured on all images, attention on ``attention_images`` of them
    spread evenly; what was sampled is in ``metrics["provenance"]``. Memory does not grow with the number of
    images.

    Args:
        model: what :func:`deepvit.capture` can watch, on any device; images are moved to it.
        loader: gives image tensors [B, C, h, w], tuples with them first (then targets), or mappings with
            ``pixel_values``. If it has ``skipped`` (a list of complaints), they are reported as unreadable
            images.
        out: folder for ``collapse.json`` and ``report.html``; ``None`` writes nothing.
        images: how many images of the loader to take; ``None`` is all.
        blocks: blocks to measure, as in ``"all"``, ``"last:5"``, ``"6-11"``; ``None`` is all.
        name: what reports call the model; by default its class.
        class_names: names for integer targets, to label images by.
        normalize: (mean, std) that the images were normalised with, to show them as they were.
        figures: also write PNG and SVG figures into ``out/figures``.
        progress: show a progress bar with the time left.
        attention_images: how many of the images to measure attention on.
        maps: how many images to keep attention maps of.
        notes: remarks for the report's account of how it was measured.
        provenance: facts for that account, such as ``data``; and ``train``, ``{"options": [...], "out": ...}``,
            the words after ``deepvit train`` that train this network, for the commands of the cures.
        sections: shown in ``report.html`` before what is about collapse.
        foremost: metrics whose charts come before the others in ``report.html``.

    Raises:
        UserError: no attention over tokens found, blocks out of range, no image, or a model whose tokens
        are NaN.
    """
    if (images is not None and images < 1) or attention_images < 1 or maps < 0:
        raise UserError(
            f"images={images}, attention_images={attention_images}: at least 1 each; maps={maps}: at least 0"
        )
    started = time.perf_counter()
    with evaluating(model):
        stream = batches(loader, images, class_names)
        first = next(stream, None)
        if first is None:
            raise UserError("the loader gives no images" + _complaints(loader))
        rows, seen = _probe(model, first.images[:1], blocks)
        total = images if (known := _count(loader)) is None else min(known, images or known)
        plan = make_plan(rows, total, attention_images)
        chosen = ChosenMaps(rows, plan, total, maps, normalize)
        measured = Pass(model, rows, plan, chosen)
        with _bar(progress, total) as done:
            measured.run(first, done)
            for batch in stream:
                measured.run(batch, done)
    results = _measurements(model, name, rows, measured, first)
    unreadable = [str(text) for text in getattr(loader, "skipped", [])]
    results.provenance |= {
        **(provenance or {}),
        "unreadable": unreadable,
        "seconds": round(time.perf_counter() - started, 2),
        "notes": [*notes, *_account(plan, measured, rows, seen), *seen.notes],
    }
    files: list[Path] = []
    if out is not None:
        page = write_report(results, out, figures, sections, foremost)
        files = [page, Path(out) / "collapse.json"]
        if figures:
            files.append(Path(out) / "figures")
    return Report(results, files)


def _probe(
    model: nn.Module, image: Tensor, blocks: str | int | Sequence[int] | None
) -> tuple[list[Row], Seen]:
    """One image through the model: which blocks it has, and their shapes."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    to: dict[str, Any] = {} if parameter is None else {"device": parameter.device, "dtype": parameter.dtype}
    with torch.no_grad(), capture(model, attention=False, on_tokens=lambda *_: None) as seen:
        model(image.to(**to))
    numbers = None if blocks is None else parse_blocks(blocks, len(seen.blocks))
    if numbers is not None and not numbers:
        raise UserError(f"blocks={blocks!r} chooses none of the {len(seen.blocks)} blocks; try all or last:4")
    return rows_of(seen, model, numbers), seen


def _measurements(
    model: nn.Module, name: str | None, rows: Sequence[Row], measured: Pass, first: Batch
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
        verdict=decide(facts, series, shares),
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
    )


def _account(plan: Plan, measured: Pass, rows: Sequence[Row], seen: Seen) -> list[str]:
    """How it was measured, in sentences."""
    lines = [
        f"Tokens were measured on {measured.images} images; attention on {measured.attention_images} of them "
        f"({_every(plan.attention_every)}), effective ranks on {_every(plan.rank_every)}.",
        "Similarities are means over heads, tokens and images; the paper does not say how it averages. "
        + SIMILAR_RULE[0].upper()
        + SIMILAR_RULE[1:]
        + ".",
        "Patch metrics leave out prefix tokens (class, distillation, registers). Feature similarity is with "
        "the last block that was measured.",
        f"CKA is debiased and rests on up to {plan.alignment_tokens} patches, "
        f"{plan.alignment_per_image} of each image.",
    ]
    sampled = [row for row in rows if row.facts.group is not None and not plan.columns(row).exact]
    if sampled:
        count = len(plan.columns(sampled[0]).index)
        lines.append(
            f"Cross-layer and head similarity compare {count} of {sampled[0].keys} columns of each map: all "
            "prefix tokens, and patches evenly spaced."
        )
    else:
        lines.append("Cross-layer and head similarity compare all columns of each map (exact).")
    if any(row.patches > plan.patch_limit for row in rows):
        lines.append(f"Patch similarity compares {plan.patch_limit} patches of each image, evenly spaced.")
    if any(row.layout.queries > plan.rank_rows for row in rows):
        lines.append(f"The rank of maps is that of {plan.rank_rows} of their rows, evenly spaced.")
    if any(row.facts.kind == "windowed" for row in rows):
        lines.append(
            "Windowed maps are compared with the nearest earlier block of the same windows, in windows "
            "without a mask."
        )
    if seen.skipped:
        found = "; ".join(f"{skip.module}: {skip.reason}" for skip in seen.skipped[:3])
        lines.append(f"{len(seen.skipped)} attentions or tokens were seen and not measured: {found}.")
    if any(row.facts.mixed for row in rows):
        lines.append(
            "Where heads are mixed, similarity, contrast and rank are of the mixed maps that multiply V; "
            "entropy and distance of the softmax maps, since signed maps have none."
        )
    return lines


def _every(step: int) -> str:
    return "all of them" if step == 1 else f"one in {step}"


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


@contextmanager
def _bar(show: bool, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error; calls advance it by images."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not show) as bar:
        task = bar.add_task("measuring", total=total)
        yield lambda count: bar.advance(task, count)
