"""Reading one image: every file of every source becomes 8-bit RGB here, upright, or one line that names it.

Training, validation, prediction and diagnosis all read by :func:`read_image` or :func:`reading` and
:func:`to_rgb`, so that a network sees the same pixels wherever it is asked.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from deepvit.errors import UserError

_TURNED = range(2, 9)  # EXIF orientations that are not upright


def read_image(source: str | os.PathLike[str] | bytes | IO[bytes], name: str | None = None) -> Image.Image:
    """An image file as upright 8-bit RGB; ``UserError`` that names it when it cannot be read.

    Args:
        source: path, encoded bytes, or an open binary file.
        name: how to call it in an error; by default its path.
    """
    with reading(name or (str(source) if isinstance(source, (str, os.PathLike)) else "given as bytes")):
        return to_rgb(decode(source))


def decode(source: str | os.PathLike[str] | bytes | IO[bytes]) -> Image.Image:
    """The decoded image as its file has it: any mode, not turned; of an animation its first frame.

    Raises what PIL raises: call it inside :func:`reading`.
    """
    with contextlib.ExitStack() as opened:
        if isinstance(source, (str, os.PathLike)):
            source = opened.enter_context(open(source, "rb"))
        elif isinstance(source, bytes):
            source = io.BytesIO(source)
        if not source.read(1):
            raise OSError("the file is empty, 0 bytes")
        source.seek(0)
        image = Image.open(source)
        image.load()
        return image


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ``UserError`` of one line: ``image NAME cannot be read (why); ...``."""
    try:
        with warnings.catch_warnings():
            # PIL's own words on what it can read all the same: odd metadata, very many pixels
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except UserError:
        raise
    except (
        Exception
    ) as error:  # bytes from anywhere make PIL raise anything, struct.error and KeyError included
        raise UserError(f"image {name} cannot be read ({_reason(error)}); mend or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB of a decoded image of any mode.

    EXIF orientation is applied. Grey becomes three equal channels. 16-bit grey is scaled by 255/65535 (PIL alone cuts
    at 255, which is white); floats are taken as 0..1. What is transparent is laid on white, as a viewer shows it (PIL
    alone shows whatever colour lies beneath). Raises ``ValueError`` for values that have no agreed range, and what PIL
    raises for modes that it cannot convert.
    """
    kind = image.format  # of the file: a turned image no longer knows it
    image = upright(image)
    if image.mode.startswith("I"):
        image = _from_wide(image, kind)
    elif image.mode == "F":
        image = _from_float(image)
    if image.mode in ("RGBA", "LA", "RGBa", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image if image.mode == "RGB" else image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says (photographs of a phone held upright); others as they are.

    Masks that belong to photographs are turned by it as well. EXIF that cannot be parsed turns nothing.
    """
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # PIL parses metadata without checks, and pixels are good without it
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _from_wide(image: Image.Image, kind: str | None) -> Image.Image:
    """16-bit grey ("I;16", or "I" as PIL reads some 16-bit files) as 8-bit grey."""
    values = np.asarray(image).astype(np.int64)
    if image.mode == "I" and kind == "TIFF":
        raise ValueError("whole numbers of 32 bits have no agreed range; save it with 8 or 16 bits")
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values from {values.min()} to {values.max()} are not of 16 bits")
    return Image.fromarray((values / 257.0).round().astype(np.uint8))


def _from_float(image: Image.Image) -> Image.Image:
    """Floats 0..1 as 8-bit grey."""
    values = np.asarray(image)
    if not (values.min() >= 0.0 and values.max() <= 1.0):  # NaN too
        raise ValueError(
            f"floats from {values.min():g} to {values.max():g} have no agreed range; save it with 8 or 16 bits"
        )
    return Image.fromarray((values * 255.0).round().astype(np.uint8))


def _reason(error: Exception) -> str:
    """Why an image could not be read, in a few words without PIL's object addresses."""
    if isinstance(error, UnidentifiedImageError):
        return "in no image format that is known here"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    lines: list[Any] = str(error).splitlines()
    return str(lines[0]) if lines else type(error).__name__
