"""The model card of a pushed run: what was trained, what was measured, and what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch import nn

from deepvit import cures
from deepvit.errors import UserError
from deepvit.files import read_json
from deepvit.losses import LOSSES
from deepvit.runs import ModelCard, read_run
from deepvit.runs.folder import stored_options

DEEPVIT = "Zhou et al. 2021, arXiv 2103.11886 (DeepViT)"
BEST = "best"
"""The word in a card's account of its weights when validation chose the epoch."""
TOLD = (
    "epochs",
    "batch_size",
    "lr",
    "schedule",
    "weight_decay",
    "drop_path",
    "losses",
    "cures",
    "precision",
    "seed",
)
"""Options that a card tells, where they have a value."""


def readme(
    run: Path, card: ModelCard, network: nn.Module, place: str, timm_reads: bool, license: str | None
) -> str:
    """``README.md`` with its YAML head, from the run's own records; what no record says is not said.

    Args:
        run: the run folder.
        card: its card.
        network: the deployed network.
        place: where it goes, as timm names it: ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``.
        timm_reads: whether ``timm.create_model`` rebuilds it.
        license: of the weights, where their owner has said one.
    """
    info, options = known(run)
    title = run.resolve().name if place.startswith("local-dir:") else place.partition(":")[2].split("/")[-1]
    parts = [
        head(card, info, options, title, timm_reads, license),
        f"# {title}",
        summary(card, network, options),
        "## Load it",
        loading(place, timm_reads),
        "## What was trained",
        trained(card, info, options),
        "## What was measured",
        measured(run, card, info, options),
        "## What was not",
        missing(card, info, options),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def known(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the options of a run; empty where there are none, as of a run that was cut."""
    try:
        info = read_run(run).info
    except UserError:
        info = {}
    try:
        options = stored_options(run)
    except UserError:
        options = {}
    return info, options


def dataset(options: dict[str, Any]) -> str | None:
    """The data by its name: a path of this machine says nothing to others."""
    spec = options.get("data")
    if spec is None:
        return None
    path = Path(str(spec))
    return path.name if path.is_absolute() or path.exists() else str(spec)


def head(
    card: ModelCard,
    info: dict[str, Any],
    options: dict[str, Any],
    title: str,
    timm_reads: bool,
    license: str | None,
) -> str:
    """The YAML head that the hub reads."""
    pipeline = card.problem.hub_name
    values: dict[str, Any] = {"library_name": "timm" if timm_reads else "deepvit"}
    if license is not None:
        values["license"] = license
    if pipeline is not None:
        values["pipeline_tag"] = pipeline
    names = sorted({str(entry["name"]) for entry in card.cures})
    values["tags"] = [*([pipeline] if pipeline else []), *(["timm"] if timm_reads else []), "deepvit", *names]
    figures = info.get("result", {})
    metrics = [
        {
            "type": column.key,
            "name": column.title,
            "value": round(figures[f"val/{column.key}"], column.digits),
        }
        for column in card.problem.columns
        if f"val/{column.key}" in figures
    ]
    name = dataset(options)
    if metrics and name is not None and pipeline is not None:
        values["model-index"] = [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": pipeline},
                        "dataset": {"name": f"{name} (validation)", "type": name},
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def summary(card: ModelCard, network: nn.Module, options: dict[str, Any]) -> str:
    """What it is, in a sentence or two."""
    count = sum(parameter.numel() for parameter in network.parameters())
    height, width = card.input.hw
    text = f"`{card.arch}` with {count / 1e6:.2f} M parameters for {card.problem.told_facts()}, "
    text += f"images of {height}×{width} pixels"
    if card.model_args:
        text += f" (`{', '.join(f'{key}={value}' for key, value in card.model_args.items())}`)"
    changed = [
        f"{entry['name']}" + (f" in blocks {told_blocks(entry['blocks'])}" if entry["blocks"] else "")
        for entry in card.cures
    ]
    text += f". Changed against attention collapse by: {'; '.join(changed)}." if changed else "."
    averaged = "averages over the steps up to" if "ema" in card.weights else "those of"
    epoch = "the epoch that was best in validation" if BEST in card.weights else "the last epoch"
    return f"{text} The weights are {averaged} {epoch}."


def told_blocks(blocks: list[int]) -> str:
    """``0-11``, or ``0, 3, 8``."""
    if len(blocks) > 2 and blocks == list(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}-{blocks[-1]}"
    return ", ".join(map(str, blocks))


def loading(place: str, timm_reads: bool) -> str:
    """Code that loads it."""
    source, _, where = place.partition(":")
    if timm_reads:
        code = "import deepvit, timm  # deepvit registers its models with timm\n\n"
        code += f'model = timm.create_model("{place}", pretrained=True).eval()'
        more = (
            "How images are prepared is in the configuration: `timm.data.resolve_model_data_config(model)`."
        )
    else:
        hub = source == "hf-hub"
        code = f"import deepvit\n{'from huggingface_hub import snapshot_download' if hub else ''}\n"
        code += (
            f"model, card = deepvit.load_deployed({f'snapshot_download({where!r})' if hub else repr(where)})"
        )
        more = (
            "timm alone cannot rebuild it: what lies behind its backbone is deepvit's. How images are prepared: "
            "`card.input`."
        )
    return f"```python\n{code}\n```\n\n{more}"


def trained(card: ModelCard, info: dict[str, Any], options: dict[str, Any]) -> str:
    """Data, recipe, machine."""
    force, name = info.get("in_force", {}), dataset(options)
    rows: list[tuple[str, Any]] = [("data", name)]
    for key, text in (("train_images", "training images"), ("val_images", "validation images")):
        rows.append((text, force.get(key)))
    start = options.get("weights")
    rows.append(("started from", None if not options else start or "random weights"))
    rows += [(option, force.get(option, options.get(option))) for option in TOLD]
    rows.append(("images a step", force.get("images_per_step")))
    rows.append(("augmentation", force.get("augment")))
    seconds = info.get("wall_seconds")
    rows.append(("wall time", None if seconds is None else f"{seconds / 60:.1f} minutes"))
    machine = info.get("hardware", {})
    rows.append(("hardware", ", ".join(machine.get("accelerators") or []) or machine.get("processor")))
    rows.append(("versions", ", ".join(f"{k} {v}" for k, v in info.get("versions", {}).items())))
    table = [
        f"| {key.replace('_', ' ')} | {told(value)} |"
        for key, value in rows
        if value not in (None, "", [], {})
    ]
    if not table:
        return "The folder holds no record of its training."
    return "\n".join(["| | |", "|---|---|", *table])


def told(value: Any) -> str:
    """A value in a cell."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {told(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(told, value))
    return str(value).replace("|", "\\|")


def measured(run: Path, card: ModelCard, info: dict[str, Any], options: dict[str, Any]) -> str:
    """Figures of the validation images, and the verdict on collapse."""
    figures = info.get("result", {})
    lines = [
        f"| {column.heading} | {figures[f'val/{column.key}']:.{column.digits}f} |"
        for column in card.problem.columns
        if f"val/{column.key}" in figures
    ]
    text = "\n".join(["| on the validation images | |", "|---|---|", *lines]) if lines else ""
    if (run / "collapse.json").exists():
        verdict = read_json(run / "collapse.json", "a collapse report").get("verdict", {})
        said = " ".join(
            f"{verdict.get(key, '').rstrip('.')}." for key in ("headline", "body") if verdict.get(key)
        )
        text += f"\n\nAttention collapse, by `deepvit diagnose`: {said}" if said else ""
    return text.strip() or "Nothing: the folder holds no figures."


def missing(card: ModelCard, info: dict[str, Any], options: dict[str, Any]) -> str:
    """What nobody should conclude from the card."""
    points = []
    if info.get("result"):
        points.append(
            f"One run with one seed ({info.get('seed')}): no spread over seeds was measured, so small differences mean "
            "nothing."
        )
    if BEST in card.weights:
        points.append("The epoch was chosen on the validation images, so the figures on them flatter it.")
    sources = [cures.CURES[str(e["name"])].source for e in card.cures if e["name"] in cures.CURES]
    if card.arch.startswith("deepvit_") and DEEPVIT not in sources:
        sources.insert(0, DEEPVIT)
    sources += [LOSSES[name].source for name in options.get("losses") or {} if name in LOSSES]
    for source in dict.fromkeys(sources):
        points.append(
            f"The published figures of {source} are **not reproduced** by this run, and are not claimed for it."
        )
    points.append(
        "Not measured: other data sets, shifted or corrupted images, fairness between groups, calibration."
    )
    return "\n".join(f"- {point}" for point in points)
