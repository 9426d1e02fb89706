"""A bad step of a run (``bad_step``) made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from deepvit.errors import UserError
from deepvit.files import read_json
from deepvit.training.bad_step import FOLDER, kept_state, seed_step
from deepvit.training.config import TrainConfig
from deepvit.training.guards import first_bad_gradient, first_nonfinite
from deepvit.training.parts import prepared


def replay(run: str | Path, process: int = 0) -> dict[str, Any]:
    """Make the bad step of a run again, on the CPU in float32; of several processes one's share of it.

    Args:
        run: run folder with ``nonfinite/``.
        process: number of the process.

    Returns:
        ``terms`` by name of the last batch, ``gradient_norm`` over the step's batches, ``began_in``: the innermost
        module whose output, or the parameter whose gradient, is not finite (None where all is finite here).

    Raises:
        UserError: there is no such record, or the images came from a stream.
    """
    folder = Path(run) / FOLDER / (f"process-{process}" if process else "")
    try:
        record = read_json(folder / "record.json", "the record of a step")
        state = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{folder} holds no step to make again: {error}") from None
    config = TrainConfig.from_yaml(Path(run) / "config.yaml").with_options(devices="cpu", progress=False)
    parts = prepared(config)
    for part, one in (("model", parts.network), ("objective", parts.objective)):
        one.load_state_dict(
            {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(f"{part}.")}
        )
    parts.loaders.setup("fit")
    parts.loaders.as_process = record["rank"], record["world"]
    loader: Any = parts.loaders.train_dataloader()
    if not hasattr(loader, "set_position"):
        raise UserError(f"{config.data.spec} is a stream: its batches cannot be read again")
    terms: dict[str, float] = {}
    began: str | None = None
    parameters = [p for one in (parts.network, parts.objective) for p in one.parameters()]
    for number in record["batches"]:
        loader.set_position(record["epoch"], number)
        images, targets = next(iter(loader))

        def forward(images: Any = images, targets: Any = targets, number: int = number) -> Any:
            own = seed_step(config.optim.seed, record["epoch"], number, record["rank"])
            return parts.objective(parts.network, images.clone(), targets, own)

        with kept_state(parts.network):
            began = began or first_nonfinite(parts.network, forward)
        total, named = forward()
        (total / len(record["batches"])).backward()
        terms = {name: float(value.detach()) for name, value in named.items()}
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    parts.loaders.teardown()
    return {
        "record": record, "terms": terms, "gradient_norm": float(norm),
        "began_in": began or first_bad_gradient(parts.network),
    }  # fmt: skip
