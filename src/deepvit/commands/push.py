"""``deepvit push``: a run to a folder or a hub, where timm loads it from."""

from __future__ import annotations

from deepvit.commands.command import Command
from deepvit.hubs.push import Pushed, push


def show(pushed: Pushed) -> None:
    """Print what was written and how it is loaded."""
    print(f"{pushed.url or pushed.place}: {', '.join(pushed.files)}")
    if pushed.timm_reads:
        print(f"import deepvit, timm; timm.create_model({pushed.place!r}, pretrained=True)")
    else:
        print("timm alone cannot rebuild it; README.md says how it is loaded (deepvit.load_deployed)")


COMMAND = Command(
    push,
    show,
    examples=(
        "deepvit push runs/a --to local-dir:hub/a",
        "deepvit push runs/a --to hf-hub:me/leaves --license mit",
    ),
)
