"""The collapse report of a run: of its deployed weights, and of the network on its way there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import nn

from deepvit.data import Loaders
from deepvit.errors import UserError
from deepvit.files import read_json
from deepvit.ops.collective import alone
from deepvit.runs.again import train_again
from deepvit.runs.card import ModelCard
from deepvit.runs.folder import UNDERWAY
from deepvit.terminal import say
from deepvit.training.callbacks import RunLog
from deepvit.training.config import TrainConfig
from deepvit.training.parts import Prepared, settings_of
from deepvit.training.sharding import put_together
from deepvit.training.trainee import Trainee


def measured(config: TrainConfig, network: nn.Module, parts: Prepared, name: str, **more: Any) -> Any:
    """``deepvit.diagnose`` of a run's network on its validation images; ``more`` are further arguments of it.

    Raises:
        UserError: a network without attention over tokens, or data that cannot be sampled.
    """
    from deepvit.report import diagnose
    from deepvit.runs.subjects import score_of

    card, images = parts.card, config.result.diagnose_images
    return diagnose(
        network,
        parts.loaders.val_loader_for(images),
        images=images,
        name=name,
        class_names=card.problem.labels,
        normalize=(card.input.mean, card.input.std),
        lesions=config.result.diagnose_lesions,
        score=score_of(card.problem),
        progress=False,
        **more,
    )


def diagnose_run(
    config: TrainConfig,
    out: Path,
    network: nn.Module,
    parts: Prepared,
    info: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    """Write ``collapse.json`` and ``report.html`` of the deployed weights, with what the task adds to the latter.

    A network without attention over tokens has no such report: the reason is printed and training counts as done.
    """
    if not config.result.diagnose_images:
        return
    card, loaders = parts.card, parts.loaders
    try:
        report = measured(
            config,
            network,
            parts,
            out.name,
            out=out,
            foremost=card.problem.foremost,
            sections=card.problem.report_parts(network, parts.data, card.input, settings_of(config)),
            provenance={
                "data": config.data.spec,
                "train": train_again(out, card, config.cure.names),
                "run": described(config, card, loaders, info, rows),
            },
        )
        info["verdict"] = report.verdict.headline
    except UserError as error:
        say(f"no collapse report: {error}", Console(stderr=True))


def folder_of(out: Path, share: float) -> Path:
    """Where the measurements at a share of training lie: ``underway/0.1`` of the run folder."""
    return out / UNDERWAY / f"{share:g}"


class Underway(Callback):
    """Measures collapse, lesions included, at given shares of training (``--diagnose_at``).

    What is measured are the weights that validation sees, in evaluation mode and by the first process alone; training goes
    on as if nothing had been. A run that goes on measures what it had not reached; of one that is made longer, what was
    measured at another step than a share now means is removed.

    Args:
        config: the options of the run.
        out: run folder, which gets ``underway/SHARE/collapse.json`` without images.
        parts: those of the run.
        steps: optimizer steps of the whole run.
        rows: told how long it took, which is no time of training.
    """

    def __init__(self, config: TrainConfig, out: Path, parts: Prepared, steps: int, rows: RunLog) -> None:
        self.config, self.out, self.parts, self.rows = config, out, parts, rows
        self.steps = steps
        self.waiting = steps_of_shares(config.result.diagnose_at, steps)

    def on_train_start(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """What lies before the step at which training starts or goes on is done."""
        now = trainer.global_step
        if trainer.is_global_zero:
            self._forget_others()
        self.waiting = {
            step: shares for step, shares in self.waiting.items() if step > now or step == now == 0
        }
        self._look(trainer, module)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Trainee, *_: Any) -> None:  # type: ignore[override]
        """Measure after the step that a share comes to."""
        self._look(trainer, module)

    def _forget_others(self) -> None:
        for step, shares in steps_of_shares(self.config.result.diagnose_at, self.steps).items():
            for share in shares:
                file = folder_of(self.out, share) / "collapse.json"
                if file.exists():
                    told = read_json(file, "a collapse report")["provenance"].get("underway", {})
                    if told.get("step") != step:
                        file.unlink()

    def _look(self, trainer: lightning.Trainer, module: Trainee) -> None:
        # Batches whose gradients are added up leave the number of steps as it is: what is done is not waiting any more.
        shares = self.waiting.pop(trainer.global_step, [])
        if not shares:
            return
        # All processes put a network together that is shared out; the passes are those of the first one alone.
        with self.rows.left_out(), put_together(module.evaluated), alone():
            if trainer.is_global_zero:
                self._measure(trainer.global_step, module, shares)

    def _measure(self, step: int, module: Trainee, shares: list[float]) -> None:
        from deepvit.report.store import save

        try:
            report = measured(self.config, module.evaluated, self.parts, self.out.name, maps=0)
        except UserError as error:
            say(f"no collapse report underway: {error}", Console(stderr=True))
            return
        for share in shares:
            found = report.measurements
            found.provenance["underway"] = {"share": share, "step": step}
            save(found, folder_of(self.out, share) / "collapse.json", maps=False)


def steps_of_shares(shares: Sequence[float], steps: int) -> dict[int, list[float]]:
    """The optimizer step that each share of training comes to, at least the first for any above 0 → its shares."""
    found: dict[int, list[float]] = {}
    for share in shares:
        found.setdefault(max(1, round(share * steps)) if share else 0, []).append(share)
    return found


def described(
    config: TrainConfig, card: ModelCard, loaders: Loaders, info: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a run is, in the form of ``deepvit.report.run``, for the header of its report."""
    result = info["result"]
    columns = [column for column in card.problem.columns if f"val/{column.key}" in result]

    def curve(name: str, key: str, unit: str = "") -> dict[str, Any]:
        points = [[int(row["epoch"]), float(row[key])] for row in rows if row.get(key) not in (None, "")]
        return {"name": name, "unit": unit, "x": "epoch", "points": points}

    return {
        "model": card.arch,
        "arguments": card.model_args,
        "cures": card.cures,
        "losses": config.loss.weights,
        "data": config.data.spec,
        "images": len(loaders.train_set),
        "epochs": config.optim.epochs,
        "batch": config.optim.batch_size * config.optim.accumulate,
        "seed": config.optim.seed,
        "weights": card.weights,
        "results": [
            {"name": c.title, "value": round(result[f"val/{c.key}"], c.digits), "unit": c.unit}
            for c in columns
        ],
        "curves": [
            curve("training loss", "train/loss"),
            *(curve(c.title, f"val/{c.key}", c.unit) for c in columns),
        ],
    }
