"""Checkpoints that survive: written whole beside the old one, the last two kept, each known by its SHA-256.

``checkpoints/last.ckpt`` is the newest, ``previous.ckpt`` the one before, ``digests.json`` the digests of both. A crash
at any moment, a full disk or a damaged file leaves at least one checkpoint that can be told to be good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from deepvit.errors import UserError
from deepvit.files import atomic_path, synchronise, write_atomic
from deepvit.models.unpickle import refuse_compressed

LAST, PREVIOUS, DIGESTS = "last.ckpt", "previous.ckpt", "digests.json"
_SECOND = ".previous-renaming.ckpt"  # as ``files.unfinished`` knows what a kill has left
_CHUNK = 1 << 22


class _Hashing:
    """A file that is written through, with the digest of what went in: what the disk makes of it is another matter."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class SafeCheckpoints(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints here."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; the one before stays as ``previous.ckpt``.

        Raises:
            UserError: the disk is full or cannot be written; both old checkpoints are as they were.
        """
        target = Path(path)
        with atomic_path(target, durable=True) as temporary:
            with temporary.open("wb") as file:
                hashing = _Hashing(file)
                try:
                    torch.save(checkpoint, hashing)  # type: ignore[arg-type]
                except RuntimeError as error:  # torch wraps what the disk says
                    raise UserError(f"{target} cannot be written: {first_line(error)}; make room") from None
            synchronise(temporary)
            # The digest is on the disk before its file has a name: whichever of the two renames is the last that a
            # crash allows, every file that has a name has its digest.
            kept = [digest for digest in digests(target.parent) if digest != hashing.digest.hexdigest()][-2:]
            known = json.dumps([*kept, hashing.digest.hexdigest()])
            write_atomic(target.parent / DIGESTS, known + "\n", durable=True)
            if target.exists():
                keep_previous(target)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors and plain values only, so that no file can run code."""
        refuse_compressed(Path(path))
        where = map_location if map_location is not None else "cpu"
        loaded: dict[str, Any] = torch.load(path, map_location=where, weights_only=True)
        return loaded


def keep_previous(target: Path) -> None:
    """Give the present checkpoint a second name, so that it never is without one."""
    previous, second = target.with_name(PREVIOUS), target.with_name(_SECOND)
    second.unlink(missing_ok=True)
    try:
        os.link(target, second)
    except OSError:  # a file system without hard links: for a moment only the older name is there
        os.replace(target, previous)
        return
    os.replace(second, previous)
    second.unlink(missing_ok=True)  # two names of one file, as a kill leaves them, are not renamed


def digests(folder: Path) -> list[str]:
    """Digests of the checkpoints of a folder, the newest last; none where the file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, UnicodeDecodeError):
        found = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        if isinstance(found, list):
            return [str(digest) for digest in found]
    return []


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a folder that is as it was written, and a line for each that is not.

    Returns:
        the path, or None where there is no checkpoint at all; and what should be said aloud.

    Raises:
        UserError: there are checkpoints and all are damaged.
    """
    known, said = digests(folder), list[str]()
    present = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    for path in present:
        if is_good(path, known):
            if said:
                said.append(f"going on from {path}, the one before")
            return path, said
        said.append(f"{path} is damaged (its content is not what was written)")
    if present:
        raise UserError(f"{'; '.join(said)}: nothing to go on from; start anew with --overwrite")
    return None, said


def is_good(path: Path, known: list[str]) -> bool:
    """Whether a checkpoint is as it was written: by its digest, or where none is known by its archive's check sums."""
    if known:
        return digest_of(path) in known
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def digest_of(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def first_line(error: Exception) -> str:
    """The first line of another library's error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
