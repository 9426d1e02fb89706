"""Every cure on timm ViTs of full size: forward, backward, compile, save and load, and how near it starts to identity.

    python benchmarks/cures_full_size.py [--models NAME ...] [--cures NAME ...]

By default a plain ViT, one with registers and one with LayerScale. A cure that a model cannot take is listed with
the reason that it gives. Figures are largest differences of logits.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
from typing import Any

import timm
import torch

from deepvit import cures
from deepvit.benchmarking.measure import machine
from deepvit.errors import UserError
from deepvit.files import write_json

MODELS = ("vit_small_patch16_224", "vit_medium_patch16_reg4_gap_256", "deit3_small_patch16_224")


def examine(name: str, cure: str) -> dict[str, Any]:
    """Apply one cure to one model and try everything."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = timm.create_model(name).eval()
    plain = copy.deepcopy(model)
    images = torch.randn(2, *model.default_cfg["input_size"])
    with torch.no_grad():
        before = model(images)
    try:
        cures.apply(model, cure)
    except UserError as error:
        return {"refused": str(error)}
    with torch.no_grad():
        start = model(images)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        compiled_difference = (compiled(images) - start).abs().max().item()

    model.train()
    model(images).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    torch.optim.SGD(model.parameters(), 1e-4).step()
    model.eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    cures.reapply(plain, json.loads(json.dumps(model.deepvit_cures)))
    plain.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        loaded_difference = (plain.eval()(images) - model(images)).abs().max().item()
    return {
        "identity_at_start": cures.CURES[cure].identity_at_start,
        "start": (start - before).abs().max().item(),
        "compiled": compiled_difference,
        "without_gradient": without,
        "loaded": loaded_difference,
    }


def main() -> None:
    """Examine every pair, print a line for each, write the JSON after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--cures", nargs="+", default=tuple(cures.CURES))
    parser.add_argument("--out", default="benchmarks/results/cures_full_size.json")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in options.models:
        for cure in options.cures:
            result = found.setdefault(name, {})[cure] = examine(name, cure)
            if "refused" in result:
                told = f"refused: {result['refused']}"
            else:
                what = "identity" if result["identity_at_start"] else "another function"
                told = (
                    f"starts {result['start']:.1e} away ({what}), compiled {result['compiled']:.1e}, loaded "
                    f"{result['loaded']:.1e}, without gradient {len(result['without_gradient'])}"
                )
            print(f"{name} {cure}: {told}", flush=True)
            write_json(options.out, {**machine(), "models": found})


if __name__ == "__main__":
    main()
