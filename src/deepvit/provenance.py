"""Where a figure comes from: versions, hardware, the command."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """Processor, cores and accelerators of this machine, for records."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else []
    )
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": gpus,
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("deepvit", "torch", "torchvision", "timm", "lightning")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def command() -> str:
    """The command line of this process, its program by name only, quoted so that it can be typed again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["deepvit" if program == "__main__.py" else program, *sys.argv[1:]])
