"""``deepvit export``: a network as an ONNX file or a torch.export program."""

from __future__ import annotations

from deepvit.commands.command import Command
from deepvit.exporting import Exported, export


def show(made: Exported) -> None:
    """Print the files, what may vary, and how near the file comes to the network."""
    size = made.path.stat().st_size / 1e6
    if made.step is None:
        told = f"images of {made.size[0]}×{made.size[1]} pixels: {made.fixed}"
    else:
        told = "images of any size" + (f" in multiples of {made.step} pixels" if made.step > 1 else "")
    print(f"{made.path} ({size:.1f} MB): any batch, {told}")
    worst = max(made.cases, key=lambda case: case.difference)
    shapes = ", ".join("×".join(map(str, case.shape)) for case in made.cases)
    print(
        f"{made.runtime} and torch differ by at most {worst.difference:.1e} (logits up to {worst.largest:.2g}) on {shapes}"
    )
    print(f"{made.description}: how images are prepared, what comes out, the classes")


COMMAND = Command(
    export,
    show,
    examples=(
        "deepvit export runs/a",
        "deepvit export runs/a --format pt2 --out deploy/leaves.pt2",
        "deepvit export vit_small_patch16_224 --pretrained --model.dynamic_img_size true",
    ),
)
