"""One self-contained HTML page: templates, styles and script inlined under a policy that allows nothing else.

The page carries a content security policy that permits exactly this style sheet and this script, by their
SHA-256, and images only as data URIs: it cannot ask any host for anything, and no text in it can run.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from deepvit.report import palette

_SCRIPTS = ("dom.js", "chart.js", "matrix.js", "strip.js", "maps.js", "patches.js", "table.js", "page.js")


def render(template: str, data: dict[str, Any], **words: Any) -> bytes:
    """The finished page as UTF-8: ``data`` for the script, ``words`` for the template (all escaped)."""
    style, script = _style(), _script()
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    text = (
        _environment()
        .get_template(template)
        .render(
            # Marked as safe because these two are our own files; whatever a user named goes through escaping.
            style=Markup(style),
            script=Markup(script),
            policy=policy,
            data=data,
            overlay=[color for _, color in sorted(palette.ramp("dark").items())],
            **words,
        )
    )
    # A file name that is not valid Unicode reaches us with lone surrogates; it must not stop the report.
    return text.encode("utf-8", "replace")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deepvit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is not JSON: a page with it would stay empty, so it is refused here, where it can be traced.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters["number"] = number
    environment.filters["spread"] = spread
    environment.filters["sentence"] = sentence
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading: three decimals where they matter, a real minus sign, a dash for None."""
    if value is None:
        return "–"
    size = abs(value)
    if isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    elif size and (size < 0.0005 or size >= 1e6):
        text = f"{value:.1e}"
    else:
        text = f"{value:.{0 if size >= 100 else 1 if size >= 10 else digits}f}"
    return text.replace("-", "−")


def sentence(text: str) -> str:
    """A clause as a sentence: capital at the front, full stop at the end."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


def spread(value: float) -> str:
    """A deviation beside its number: two decimals, for more would claim what it cannot know."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _asset(name: str) -> str:
    return files("deepvit.report").joinpath("assets", name).read_text("utf-8")


@cache
def _script() -> str:
    body = "\n".join(_asset(name) for name in _SCRIPTS)
    assert "</script" not in body.lower()
    return f"(() => {{\n'use strict';\n{body}\n}})();"


@cache
def _style() -> str:
    light, dark = palette.css_variables("light"), palette.css_variables("dark")
    steps = range(-palette.STEPS, palette.STEPS + 1)
    classes = [f".h{step}{{fill:var(--h{step})}}" for step in steps]
    classes += [f".c{index}{{--series:var(--s{index})}}" for index in range(len(palette.SERIES_LIGHT))]
    return "\n".join(
        (
            f":root{{{light}}}",
            f"@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}",
            f":root[data-theme=dark]{{{dark}}}",
            f"@media print{{:root:root:root{{{light}}}}}",
            *classes,
            _asset("report.css"),
        )
    )
