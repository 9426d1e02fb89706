"""Two steps of one image each, two more after resuming, and the network again from its folder."""

from __future__ import annotations

from pathlib import Path

import torch

import deepvit


def trains_resumes_and_loads(out: Path, crop: int, **options: object) -> None:
    """``crop`` is no multiple of the patch, nor is the scene that crops are cut from."""
    size = crop + 7
    given = {
        "task": "segmentation", "data": "digit-scenes", "data_args": {"scenes": 2, "scene_size": size}, "batch_size": 1,
        "scene": {"crop_size": crop}, "max_val_images": 1, "diagnose_images": 0, "epochs": 1, "devices": "cpu",
        "workers": 0, "progress": False,
    }  # fmt: skip
    run = deepvit.train(out=str(out), **{**given, **options})
    assert (run.result["epochs"], run.result["steps"]) == (1, 2)
    first = state(out)
    run = deepvit.train(out=str(out), resume=True, epochs=2, devices="cpu", workers=0, progress=False)
    assert (run.result["epochs"], run.result["steps"]) == (2, 4)
    last = state(out)
    assert set(first) == set(last)
    assert any(not torch.equal(first[name], last[name]) for name in first)
    network, card = deepvit.load_deployed(out)
    assert card.input.hw == (crop, crop)
    loaded = network.state_dict()
    assert set(loaded) == set(last)
    assert all(torch.equal(loaded[name], value) for name, value in last.items())
    images = torch.randn(1, 3, size, crop - 6)
    with torch.inference_mode():
        found = card.problem.infer(network, images)
    assert found.shape == (1, 11, size, crop - 6)
    assert found.isfinite().all()


def state(out: Path) -> dict[str, torch.Tensor]:
    """The network as it was saved last."""
    saved = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
