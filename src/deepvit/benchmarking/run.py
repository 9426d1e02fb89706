"""``deepvit benchmark``: run a suite, keep its JSON, write its table and plot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepvit.benchmarking.attention import run_attention_suite
from deepvit.benchmarking.engine import run_engine_suite
from deepvit.benchmarking.networks import run_model_suite
from deepvit.benchmarking.tables import draw_growth, table_of
from deepvit.errors import UserError
from deepvit.files import write_atomic, write_json

SUITES: dict[str, Callable[..., dict[str, Any]]] = {
    "attention": run_attention_suite,
    "model": run_model_suite,
    "engine": run_engine_suite,
}


def benchmark(
    suite: str, out: str = "benchmarks/results", rounds: int | None = None, timm_script: str | None = None
) -> dict[str, Any]:
    """Measure speed and memory against the peers: ratios within one run, sides in turn.

    Args:
        suite: attention (operators against SDPA), model (networks against timm's ViT), or engine (deepvit train
            against a bare loop).
        out: folder for SUITE.json, SUITE.md and SUITE.png.
        rounds: counted rounds; by default each suite's own.
        timm_script: path of timm's train.py (at the top of its repository), measured beside them in suite engine.

    Returns:
        what SUITE.json holds, and under ``files`` the paths.

    Raises:
        UserError: no such suite, no round, or a script that suite does not take or that fails.
    """
    if suite not in SUITES:
        raise UserError(f"no suite is called {suite!r}: there are {', '.join(SUITES)}")
    if rounds is not None and rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1")
    given: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if timm_script is not None:
        if suite != "engine":
            raise UserError(f"timm_script belongs to suite engine, not to {suite}")
        given["timm_script"] = timm_script
    result = SUITES[suite](**given)
    return keep(result, Path(out))


def keep(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write JSON, Markdown table and plot of a result; returns it with the paths under ``files``."""
    suite = result["suite"]
    files = [
        str(write_json(folder / f"{suite}.json", result)),
        str(write_atomic(folder / f"{suite}.md", table_of(result))),
    ]
    if draw_growth(result, folder / f"{suite}.png"):
        files.append(str(folder / f"{suite}.png"))
    return {**result, "files": files}
