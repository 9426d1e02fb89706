"""Starting the other processes of a run: each is ``child.main`` in a Python of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from typing import Any

from deepvit.parsing import json_ready
from deepvit.runs.place import CHILD


def start(where: str, options: dict[str, Any], given: Collection[str]) -> subprocess.Popen[bytes]:
    """Start the process of a place (see ``runs.place.CHILD``); it ends when its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from deepvit.training.child import main; sys.exit(main())"],
        stdin=subprocess.PIPE,
        env={**os.environ, CHILD: where, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdin is not None
    message = {"options": json_ready(options), "given": sorted(given)}
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    return process
