"""The C++ sweeps: compiled for this processor at first use (about three seconds), kept, and loaded by ctypes.

Compiled here and not when the package is built, so that one package serves every processor, and because there is
nothing to link: the code calls neither PyTorch nor threads. ``CXX`` names another compiler, ``DEEPVIT_NATIVE=0``
forbids it all.
"""

from __future__ import annotations

import contextlib
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

from ...errors import UserError
from ...files import atomic_path

SWITCH = "DEEPVIT_NATIVE"
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
    except (OSError, subprocess.SubprocessError) as error:
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
    try:
        if not kept.exists():
            with atomic_path(kept) as path:
                compile_to(path)
        return _load(kept)
    except (UserError, OSError):  # a place that cannot be written or run from, or a file that was cut short
        with contextlib.suppress(OSError):
            kept.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            compile_to(Path(folder) / name)
            return _load(Path(folder) / name)


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
