"""The C++ sweeps: compiled for this processor at first use (about three seconds), kept, and loaded by ctypes.

Compiled here and not when the package is built, so that one package serves every processor, and because there is
nothing to link: the code calls neither PyTorch nor threads. ``CXX`` names another compiler, ``DEEPVIT_NATIVE=0``
forbids it all.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from deepvit.errors import UserError
from deepvit.files import write_atomic

SWITCH = "DEEPVIT_NATIVE"
_DIGEST = hashlib.sha256().digest_size
SOURCES = ("tiles.h", "maps.h", "tensors.h", "sweeps.cpp")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-shared",
    "-fPIC",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)
CAPABILITIES = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
"""Flags by what PyTorch itself found that the processor can; others take what every such processor has."""

logger = logging.getLogger(__name__)


class CTensor(ctypes.Structure):
    """``struct Tensor`` of tensors.h."""

    _fields_ = [("at", ctypes.c_void_p), *((n, ctypes.c_int64) for n in ("image", "head", "token", "half"))]


class CSweep(ctypes.Structure):
    """``struct Sweep`` of sweeps.cpp."""

    _fields_ = [
        *((n, CTensor) for n in ("q", "k", "v", "o", "d_o", "dq", "dk", "dv")),
        *((n, ctypes.c_void_p) for n in ("theta", "twice", "squares", "dtheta", "scratch")),
        *(
            (n, ctypes.c_int64)
            for n in ("heads", "tokens", "width", "images", "first_row", "last_row", "block")
        ),
        ("scale", ctypes.c_float),
    ]


def library() -> ctypes.CDLL | str:
    """The compiled sweeps, or one line that says why there are none."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 forbids it"
    return _library(torch.backends.cpu.get_cpu_capability())


@functools.cache
def _library(capability: str) -> ctypes.CDLL | str:
    if sys.platform != "linux":
        return "it was built and measured on Linux only"
    try:
        command = _compiler()
    except ValueError as error:
        return f"CXX={os.environ['CXX']!r} is not a command ({error})"
    if command is None:
        return "it needs a C++ compiler (c++, g++ or clang++ on the PATH, or named by CXX)"
    try:
        return build(command, capability)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        if isinstance(output, bytes):  # of a compiler that ran out of time
            output = output.decode(errors="replace")
        lines = output.strip().splitlines() or [type(error).__name__]
        first = next((line for line in lines if "error" in line), lines[0])
        logger.warning("there is no native backend here, slower ones run: %s", first)
        return f"{shlex.join(command)} made no library that loads ({first})"


def build(command: list[str], capability: str) -> ctypes.CDLL:
    """Compile the sweeps with ``command``, unless that was done before, and load them.

    Raises:
        OSError: the compiler or the library cannot be run or loaded.
        AttributeError: the library that was made has not the sweeps in it.
        subprocess.SubprocessError: the compiler failed; its words are in ``stderr``.
    """
    here = Path(__file__).parent
    flags = [*FLAGS, *CAPABILITIES.get(capability, ())]
    sources = [(here / name).read_bytes() for name in SOURCES]
    key = hashlib.sha256(b"\0".join([*sources, repr((command, flags, platform.machine())).encode()]))
    name = f"native-{key.hexdigest()[:16]}.so"

    def compile_to(path: Path) -> None:
        logger.info("compiling %s for %s", here / "sweeps.cpp", capability)
        subprocess.run(
            [*command, *flags, str(here / "sweeps.cpp"), "-o", str(path)],
            capture_output=True,
            text=True,
            errors="replace",
            check=True,
            timeout=300,
        )

    kept = _cache() / name
    refused = _why_not_loaded(kept)
    if refused is None:
        try:
            return _load(kept)
        except (OSError, AttributeError) as error:  # a place that nothing runs from, or another library
            refused = f"{kept} does not load ({error})"
    if refused:
        logger.warning("the native backend is compiled again: %s", refused)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / name
        compile_to(made)
        written = _keep(kept, made.read_bytes())
        try:
            return _load(
                made
            )  # and not from ``kept``, under whose name the loader may hold what was there before
        except OSError:
            if not written:
                raise
            return _load(kept)


def _why_not_loaded(kept: Path) -> str | None:
    """Why ``kept`` must not be loaded: "" where it is not there, None where it may be.

    Loading runs what is in the file, and a file cut short ends the process. So the file and its folder must be this
    user's, writable by nobody else, and the file must end with the digest of what comes before.
    """
    try:
        reason = _foreign(kept.parent) or _foreign(kept)
        if reason is not None:
            return reason
        data = kept.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{kept} cannot be read ({error.strerror})"
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    return None if hashlib.sha256(body).digest() == digest else f"{kept} is damaged"


def _foreign(path: Path) -> str | None:
    """Why somebody else may have written ``path``; None where nobody else can have."""
    found = os.stat(path)
    if found.st_uid != os.geteuid():
        return f"{path} belongs to another user; remove it, or name another folder in XDG_CACHE_HOME"
    if found.st_mode & 0o022:
        return f"{path} can be written by other users; chmod go-w would do"
    return None


def _keep(kept: Path, library: bytes) -> bool:
    """Write the library for the next time, with its digest at its end, where the linker does not look."""
    try:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _foreign(kept.parent) is not None:
            return False
        write_atomic(kept, library + hashlib.sha256(library).digest())
        kept.chmod(0o600)
    except (UserError, OSError) as error:
        logger.info("the library is not kept: %s", error)
        return False
    return True


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named or Path.home() / ".cache") / "deepvit"
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / "deepvit"


def _compiler() -> list[str] | None:
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    return next(([found] for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)


def _load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.deepvit_scratch.restype = ctypes.c_int64
    found.deepvit_scratch.argtypes = [*[ctypes.c_int64] * 4, ctypes.c_int]
    for sweep in (found.deepvit_forward, found.deepvit_backward):
        sweep.restype, sweep.argtypes = None, [ctypes.POINTER(CSweep)]
    return found
