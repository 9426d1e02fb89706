"""The sources of data for classification, and opening by a data string. A new one is a file and a line of ``SOURCES``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepvit.data.dataset import ImageData
from deepvit.data.layout import Listing, unlabelled
from deepvit.data.options import DataOptions
from deepvit.data.sets import ImageSet
from deepvit.data.sources.digits import DIGITS
from deepvit.data.sources.huggingface import HFDS
from deepvit.data.sources.local import FOLDER, TAR, list_place
from deepvit.data.sources.source import Sources
from deepvit.data.sources.torchvision import TORCH
from deepvit.data.sources.webdataset import WDS

SOURCES: Sources[ImageData] = Sources(
    DIGITS,
    TORCH,
    HFDS,
    WDS,
    TAR,
    FOLDER,
)


def open_data(spec: str, options: DataOptions | None = None, **given: Any) -> ImageData:
    """Opens a data set for classification by its string (``deepvit list data`` shows the forms).

    Args:
        spec: the string.
        options: the source's own options.
        **given: the same by name (``open_data(folder, val_fraction=0.1)``), instead of ``options``.

    Raises:
        UserError: one line, for what a person can mend; an option that the source does not take is one.
    """
    assert options is None or not given
    return SOURCES.open(spec, DataOptions.of(**given) if given else options)


def open_images(spec: str | Path) -> ImageSet:
    """Images for diagnosis or prediction, without labels: a file, a folder (all below it), or a tar."""
    path = Path(spec)
    if path.is_file() and path.suffix != ".tar":
        return unlabelled(Listing(path.parent, [path.name]))
    return unlabelled(list_place(str(spec)))


def table() -> list[dict[str, str]]:
    """Rows for ``deepvit list data``."""
    return SOURCES.table()
