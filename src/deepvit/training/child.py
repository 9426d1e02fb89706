"""One more process of a run; its options come by standard input from the first."""

from __future__ import annotations

import json
import sys
import traceback
import warnings

from deepvit.errors import UserError
from deepvit.runs.place import place
from deepvit.training.meeting import end_with_parent
from deepvit.training.run import train


def main() -> int:
    """Train as the first process says; what it says itself is not said again."""
    message = json.loads(sys.stdin.buffer.readline())
    closed = end_with_parent(sys.stdin.fileno())
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchvision|timm|jsonargparse)(\..*)?$")
    here = place()
    assert here is not None
    try:
        train(given=message["given"], **message["options"])
    except (SystemExit, KeyboardInterrupt) as ended:
        return ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else 130
    except UserError as error:
        # Where all have failed, or the first has, the first says it, and closes the pipe.
        if not closed.wait(5):
            said = " ".join(str(error).split())
            print(f"deepvit train: process {here.rank}: {said}", file=sys.stderr, flush=True)
        return 2
    except BaseException:
        if not closed.wait(5):
            traceback.print_exc()
        return 1
    return 0
