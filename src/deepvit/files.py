"""Files are written whole or not at all: a temporary name in the same folder, then one rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
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
    temporary = Path(name)
    try:
        os.close(handle)
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
    except BaseException as error:
        with contextlib.suppress(OSError):  # a disk that is gone takes the file with it
            temporary.unlink(missing_ok=True)
        if said := said_of_place(error, target.parent):
            raise UserError(
                f"{target} cannot be written: {said}; make room, or choose another place"
            ) from None
        raise


def said_of_place(error: BaseException, folder: Path) -> str | None:
    """What an error says of the place that is written to: full, read-only, gone; None for an error about something else.

    Libraries written in Rust (safetensors) have the number of the system's error in their text only.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(told.group(1))
    if number is None:
        return None
    if number in _DENIED and Path(str(getattr(error, "filename", None) or folder)).parent != folder:
        return None
    if number in _DISK | _DENIED or not folder.is_dir():
        return os.strerror(number)
    return None


def unfinished(folder: Path, names: Iterable[str]) -> list[Path]:
    """Temporary files that ``atomic_path`` has left in a folder for files of these names: what wrote them was killed."""
    patterns = [f".{Path(name).stem}-????????{Path(name).suffix}" for name in names]
    return [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]


MOST_BYTES = 64 * 1024**2
"""The largest JSON file that is read; a collapse report with all its maps has a few."""


def read_text(path: str | os.PathLike[str], most: int = MOST_BYTES) -> str:
    """A text file (UTF-8) of at most so many bytes.

    Raises:
        UserError: no such file, one that cannot be read, is too large, or is no text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > most:
        raise UserError(
            f"{path} has more than {most // 1024} KiB: it is none of the files that are read here"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start})") from None


def read_json(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Args:
        path: the file.
        what: what it should be, for the error: "the record of a run".

    Raises:
        UserError: it cannot be read, is damaged, or holds something else.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path} is damaged ({reason}): it is not {what}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it is not {what}")
    return value


READING = frozenset({errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN})
"""What a disk says to reading as well as to writing."""
_DISK = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO,
    errno.ENOTCONN,
}  # fmt: skip
_DENIED = {errno.EACCES, errno.EPERM}
"""What a disk and its permissions say; other errors are not about the place."""


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
        temporary.write_bytes(utf8(data, path) if isinstance(data, str) else data)
    return Path(path)


def utf8(text: str, path: str | os.PathLike[str]) -> bytes:
    """A text as UTF-8; in a locale of ASCII names of files are undecoded bytes in it, which are UTF-8 as a rule.

    Raises:
        UserError: they are not.
    """
    data = text.encode("utf-8", "surrogateescape")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(
            f"{path} cannot be written: it would hold names of files that are no UTF-8; rename them"
        ) from None
    return data


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write ``value`` as indented JSON, whole or not at all; NaN and infinities are refused (not JSON)."""
    return write_atomic(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
