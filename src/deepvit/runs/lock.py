"""One writer a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from deepvit.errors import UserError

NAME = ".lock"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder inside; it is made if it is missing.

    The lock is the kernel's (``flock``): it cannot go stale, since it goes with the process. The file says who holds it.

    Raises:
        UserError: another process writes here, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; choose another place") from None
    try:
        if not locked(handle):
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise UserError(
                f"{folder} is being written by {holder}: wait for it, or give another folder with --out"
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)


def locked(handle: int) -> bool:
    """Take the lock, or say that somebody else has it; where the file system has no locks nobody is refused."""
    try:
        import fcntl
    except ImportError:  # Windows: no flock; the folder's own checks remain
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
