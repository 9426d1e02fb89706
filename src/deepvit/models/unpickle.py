"""Checkpoint files are read without running anything they bring: tensors, plain values, one named class."""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from deepvit.errors import UserError


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What a checkpoint file holds, on the CPU: ``.safetensors``, or torch's zip and legacy pickle formats.

    Of pickles, torch's restricted unpickler is used with one class let through, ``argparse.Namespace``
    (official DeepViT and timm files keep their options in one). What other libraries of this process have
    declared safe does not count here.

    Raises:
        UserError: no such file; a class or function that is not let through (by its name); a damaged file.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"{file}: cannot be opened ({error.strerror or error})") from error
    try:
        # A safetensors file begins with 8 bytes of length and a JSON object, whatever its name.
        if head[8:] == b"{" or file.suffix == ".safetensors":
            return load_file(file)
        refuse_compressed(file)
        # torch warns of pickle protocols that it does not write; what it cannot read it refuses anyway.
        with _only_namespace(), warnings.catch_warnings(action="ignore", category=UserWarning):
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        refused = _refused_name(file, str(error))
        if refused is None:
            raise _damaged(file, error) from error
        raise UserError(
            f"{file}: refused, because reading it would call {refused}; a checkpoint may hold "
            "tensors, plain values and argparse.Namespace only. If you trust its origin, "
            "save its state_dict alone to a new file"
        ) from None
    except SafetensorError as error:
        raise _damaged(file, error) from error
    except Exception as error:  # torch answers damaged bytes with nearly any kind of exception
        raise _damaged(file, error) from error


def refuse_compressed(file: Path) -> None:
    """Refuse a zip archive with compressed parts, which torch never writes: a small one may hold any amount of memory.

    Raises:
        UserError: so it is.
    """
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            # Parts may also lie upon one another.
            if not stored or sum(part.file_size for part in parts) > file.stat().st_size:
                raise UserError(
                    f"{file}: refused, because it holds more than its size, which no checkpoint of torch does"
                )


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file}: not a readable checkpoint: damaged, cut short or of another format "
        f"({file.stat().st_size} bytes; {_reason(str(error)) or type(error).__name__})"
    )


def _reason(message: str) -> str:
    """What torch says within its advice, in a few words."""
    if "Unsupported operand" in message:
        return "a pickle of a protocol that cannot be read safely; torch.save's own can"
    reason = message.strip().partition("\n")[0].partition(". ")[0]
    return reason if len(reason) <= 120 else reason[:120] + "…"


@contextlib.contextmanager
def _only_namespace() -> Iterator[None]:
    """Let ``argparse.Namespace`` through and nothing else, then restore what the process had allowed."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)


def _refused_name(file: Path, message: str) -> str | None:
    """The class or function that torch refused: from its message, else from the file."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if found:
        return found.group(1)
    foreign = [name for name in pickle_names(_pickle_bytes(file)) if not _usual(name)]
    return foreign[0] if foreign else None


def _usual(name: str) -> bool:
    return name.startswith(("torch.", "collections.OrderedDict", "argparse.Namespace"))


def _pickle_bytes(file: Path) -> bytes:
    """The pickle inside a torch zip file, or the whole of an older file."""
    if not zipfile.is_zipfile(file):
        return file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        names = [name for name in archive.namelist() if name.endswith("data.pkl")]
        return archive.read(names[0]) if names else b""


def pickle_names(data: bytes) -> list[str]:
    """Classes and functions (``module.name``) that a pickle asks for, without running it."""
    names: list[str] = []
    strings: list[str] = []  # in the order in which they are pushed; STACK_GLOBAL takes the last two
    memo: list[str | None] = []
    pushed: str | None = None
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "MEMOIZE":
                memo.append(pushed)
                continue
            pushed = None
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(strings[-2:]))
            elif opcode.name in ("BINGET", "LONG_BINGET") and int(argument or 0) < len(memo):
                pushed = memo[int(argument or 0)]
            elif isinstance(argument, str):
                pushed = argument
            if pushed is not None:
                strings.append(pushed)
    except Exception:
        return names  # damaged from here on: what was found so far still names the culprit
    return names
