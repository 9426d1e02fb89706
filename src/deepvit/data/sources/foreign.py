"""Calling other libraries' readers: whatever they raise becomes one line, and they print nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from deepvit.errors import UserError

VAL_SPLITS = ("validation", "val", "valid", "test", "eval")


@contextlib.contextmanager
def one_line(what: str, way_out: str) -> Iterator[None]:
    """Whatever a foreign loader raises becomes one line that names the data set."""
    try:
        with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
            yield
    except UserError:
        raise
    except Exception as error:  # loaders and the hub raise anything, AssertionError included
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"{what} could not be opened ({type(error).__name__}: {reason}); {way_out}"
        ) from error
