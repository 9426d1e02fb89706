"""``deepvit.diagnose``: from a model and images to measurements, a verdict and a report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from deepvit.collapse.lesions.measuring import Mode
from deepvit.collapse.lesions.score import Score
from deepvit.collapse.measuring import measure
from deepvit.report.account import account
from deepvit.report.notebook import in_html, in_two_lines
from deepvit.report.sections import Section
from deepvit.report.spoken import SpokenMeasurements, SpokenVerdict, spoken
from deepvit.report.store import plain
from deepvit.report.write import write_report


@dataclass(repr=False)
class Report:
    """What ``deepvit.diagnose`` returns: the measurements, and the files that were written."""

    measurements: SpokenMeasurements
    files: list[Path] = field(default_factory=list)

    def __repr__(self) -> str:
        """Three lines: what it is of, the verdict, where it was written."""
        written = ", ".join(str(path) for path in self.files) or "nothing written"
        return f"{in_two_lines(self.measurements)}\n  {written}"

    def _repr_html_(self) -> str:
        return in_html(self.measurements)

    @property
    def metrics(self) -> dict[str, Any]:
        """Everything that was measured as plain JSON values, as in ``collapse.json`` (without image maps)."""
        return plain(self.measurements, maps=False)

    @property
    def verdict(self) -> SpokenVerdict:
        """The verdict: ``.kind``, ``.headline``, ``.text``, ``.from_block``, ``.cures``, ``.sureness``."""
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
    lesions: Mode = "auto",
    score: Score | None = None,
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = (),
    foremost: Sequence[str] = (),
) -> Report:
    """Measure attention collapse of any Vision Transformer on images, find out whether it matters, and say so.

    The model runs in evaluation mode, without gradients, once over the images; every module is then again
    in the mode that it was in. Tokens are measured on all images, attention on ``attention_images`` of them
    spread evenly; what was sampled is in ``metrics["provenance"]``. Memory does not grow with the number of
    images. Then blocks and parts of them are taken away, one by one and together, and the answer without them is compared
    with the intact network's ("lesions"): that says which blocks earn their place.

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
        lesions: "auto" takes at most about twice the time of the rest, with as many images and kinds of lesions
            as fit; "full" does all on all images (which are then kept in memory); "off" none: the verdict is then
            by likeness alone. Targets of the loader, if it gives some, are used for accuracy where they agree with
            the network's answers better than chance.
        score: what of the targets is measured; by default accuracy for labels [B], mIoU for masks [B, H, W].
        notes: remarks for the report's account of how it was measured.
        provenance: facts for that account, such as ``data``; and ``train``, ``{"options": [...], "out": ...}``,
            the words after ``deepvit train`` that train this network, for the commands of the cures.
        sections: shown in ``report.html`` before what is about collapse.
        foremost: metrics whose charts come before the others in ``report.html``.

    Raises:
        UserError: no attention over tokens found, blocks out of range, no image, or a model whose tokens
            are NaN.
    """
    results = spoken(
        measure(
            model,
            loader,
            images,
            blocks,
            name=name,
            class_names=class_names,
            normalize=normalize,
            progress=progress,
            attention_images=attention_images,
            maps=maps,
            lesions=lesions,
            score=score,
        )
    )
    results.provenance |= provenance or {}
    results.provenance["notes"] = [*notes, *account(results)]
    files: list[Path] = []
    if out is not None:
        page = write_report(results, out, figures, sections, foremost)
        files = [page, Path(out) / "collapse.json"]
        if figures:
            files.append(Path(out) / "figures")
    return Report(results, files)
