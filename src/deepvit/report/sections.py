"""Sections that a task puts into the report of its run, before those on collapse: pictures and a table, no markup."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture with the line below it; ``source`` is a data URI (``png_uri``), ``width`` in pixels on the page."""

    source: str
    caption: str
    width: int


@dataclass(frozen=True)
class Section:
    """A heading, a line on how to read it, pictures, and a table of texts.

    ``key``: its anchor on the page. ``headings`` and ``rows``: of the table; without headings there is none. ``legend``:
    what the colours of the pictures stand for, as (red, green, blue) of 0 to 255 and a name.
    """

    key: str
    title: str
    intro: str = ""
    pictures: Sequence[Picture] = ()
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default=())
    legend: Sequence[tuple[Sequence[int], str]] = ()


def png_uri(image: Image.Image) -> str:
    """An image as a PNG data URI."""
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def jpeg_uri(image: Image.Image) -> str:
    """A photograph as a JPEG data URI, chroma at full size."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
