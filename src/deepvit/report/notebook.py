"""A report in a notebook cell or a console: what it is of, the verdict, the strip; nothing that needs a script."""

from __future__ import annotations

from html import escape

from deepvit.collapse.results import Measurements
from deepvit.report import palette, sentences
from deepvit.report.charts import STRIP_ROWS
from deepvit.report.words import has_random_weights, lead, subject


def in_two_lines(results: Measurements) -> str:
    """Name and size; verdict, from which block on, and how sure."""
    verdict = results.verdict
    random = ", random weights" if has_random_weights(results) else ""
    return (
        f"Collapse report of {results.name}: {subject(results)}{random}\n"
        f"  {sentences.headline(verdict)} ({verdict.sureness}: {sentences.sureness(verdict)})"
    )


def in_html(results: Measurements) -> str:
    """Headline, paragraph and depth strip as a piece of HTML with its colours in it, for any notebook."""
    verdict, ramp = results.verdict, palette.ramp("light")
    random = " · <b>random weights</b>" if has_random_weights(results) else ""
    rows = []
    for key, name in STRIP_ROWS.items():
        values = results.series[key].values if key in results.series else []
        cells = "".join(
            f'<td title="block {block.index}: {"–" if value is None else format(value, ".3f")}" '
            f'style="background:{"#e3e8ed" if value is None else ramp[palette.step_of(value)]};'
            'min-width:14px;height:16px;padding:0"></td>'
            for block, value in zip(results.blocks, values, strict=False)
        )
        if cells:
            rows.append(f'<tr><td style="text-align:right;padding-right:8px">{name}</td>{cells}</tr>')
    return (
        f"<div><div>Collapse report of <b>{_safe(results.name)}</b>, {_safe(subject(results))}{random}</div>"
        f'<div style="font-size:1.3em;font-weight:700">{_safe(sentences.headline(verdict))}</div>'
        f"<div>{_safe(lead(results))}</div>"
        f'<table style="border-spacing:1px;border-collapse:separate">{"".join(rows)}</table></div>'
    )


def _safe(text: str) -> str:
    return escape(text.encode("utf-8", "replace").decode())
