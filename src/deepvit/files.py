"""Files are written whole or not at all: a temporary name in the same folder, then one rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepvit.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` on success, remove it on any failure.

    The suffix of ``path`` is kept, because writers such as matplotlib choose their format by it. Missing
    parent folders are made. ``durable``: the content reaches the disk before the name does, and the name before
    this returns, so that a machine that loses power has the old file or the new one.

    Raises:
        UserError: the folder cannot be written, or the disk is full; the old file is as it was.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}; choose another place") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes the file private; a result should have the mode that open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        if durable:
            synchronise(temporary)
        os.replace(temporary, target)
        if durable:
            synchronise(target.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _DISK or not target.parent.is_dir():
            raise UserError(
                f"{target} cannot be written: {error.strerror}; make room, or choose another place"
            ) from None
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
"""What a disk or its permissions say; other errors are not about the place."""


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: str | os.PathLike[str], data: str | bytes, *, durable: bool = False) -> Path:
    """Write text (UTF-8) or bytes to ``path`` whole or not at all; returns the path."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinities are refused (not JSON)."""
    return write_atomic(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
