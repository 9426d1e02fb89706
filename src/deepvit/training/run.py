"""One training run from options to a run folder: checks first, then Lightning's Trainer, then the record."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from deepvit.errors import UserError
from deepvit.files import write_atomic, write_json
from deepvit.layers.entries import entries, set_entries
from deepvit.layers.synced_norm import synchronise
from deepvit.runs.card import load_deployed, save_deployed
from deepvit.runs.folder import Run, check_folder, clear_folder, read_metrics, read_run, still_there, sweep
from deepvit.runs.lock import writing
from deepvit.terminal import say
from deepvit.training.checkpoints import newest_good
from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import BatchModule
from deepvit.training.diagnosing import Underway, diagnose_run
from deepvit.training.groups import RunOptions
from deepvit.training.in_force import in_force
from deepvit.training.meeting import team
from deepvit.training.optim import epochs_of
from deepvit.training.parts import Prepared, checkpoint_blocks, prepared, steps_of
from deepvit.training.processes import Team
from deepvit.training.record import announce, record
from deepvit.training.saving import way_on
from deepvit.training.sharding import whole_state
from deepvit.training.spawning import start
from deepvit.training.strategy import check_strategy, has_unused
from deepvit.training.trainee import Trainee
from deepvit.training.trainer import build_trainer, fit


def train(config: TrainConfig | None = None, *, given: Collection[str] | None = None, **options: Any) -> Run:
    """Train a network and leave a run folder that holds everything about it.

    Nothing is written before model and data are known to be right.

    Args:
        config: all options at once.
        given: names of the options in ``config`` that were chosen and do not merely have their defaults: to go on
            with a run, these must agree with it. None: those that differ from their defaults.
        **options: options of :class:`TrainConfig` by name (``model="deepvit_s_patch16_224", epochs=10``); with
            ``config``, they replace its own.

    Returns:
        the run: its folder and its record.

    Raises:
        UserError: a mistake in the options, the data or the folder, in one line.
    """
    chosen = set(options)
    if config is not None:
        chosen |= set(config.changed() if given is None else given)
        options = {**config.options(), **options}
    devices, nodes = options.get("devices", RunOptions.devices), options.get("nodes")
    if not (isinstance(devices, str | int) and isinstance(nodes, int | None)):
        TrainConfig(**options)  # says what is wrong
    with team(str(devices), nodes, lambda place: start(place, options, chosen)) as one:
        settled, out = one.decide(lambda: settle(dict(options), chosen, one))
        if settled is None:
            return read_run(out)
        return _train(TrainConfig(**settled), out, one)


def settle(
    options: dict[str, Any], chosen: Collection[str], team: Team
) -> tuple[dict[str, Any] | None, Path]:
    """What a run's options come to, with the folder as it is: all options, or None for a run that is done; and the folder.

    Raises:
        UserError: options that cannot be meant, or a folder that may not be written or gone on with.
    """
    if options.get("resume") == "auto":
        begun = options.get("out") or default_out(TrainConfig(**{**options, "resume": False}))
        options["resume"] = (Path(str(begun)) / "config.yaml").is_file()
    stored = stored_config(options)
    if stored is not None and "task" not in chosen:
        options["task"] = stored.task  # so that options which only that task has are known
    config = TrainConfig(**options)
    out = Path(config.run.out or default_out(config))
    check_folder(out, resume=bool(config.run.resume), overwrite=config.run.overwrite)
    if config.run.resume:
        stored = stored or TrainConfig.from_yaml(out / "config.yaml")
        config.check_continues(stored, chosen)
        config = config.continuing(stored, str(out), chosen)
        done = len(read_metrics(out))
        if config.run.until is not None and not (out / "run.json").exists() and done >= config.run.until:
            raise UserError(
                f"{out} has {done} epochs already: raise --until={config.run.until}, or leave it out"
            )
        if (out / "run.json").exists():
            if config.optim.epochs == stored.optim.epochs:
                return None, out
            if newest_good(out / "checkpoints")[0] is None:
                raise UserError(f"{out} has no checkpoint to go on from: train anew with --out")
    check_strategy(config, team)
    return config.options(), out


def stored_config(options: dict[str, Any]) -> TrainConfig | None:
    """The options of the run that is to go on, where one lies in the folder that is named."""
    path = Path(str(options.get("out"))) / "config.yaml"
    return TrainConfig.from_yaml(path) if options.get("resume") is True and path.is_file() else None


def default_out(config: TrainConfig) -> str:
    """``runs/MODEL-DATA``, the data by its last part."""
    model = config.model.name.split("/")[-1].removeprefix("hf-hub:")
    return f"runs/{model}-{Path(config.data.spec).stem or 'data'}"


def _train(config: TrainConfig, out: Path, team: Team) -> Run:
    started = time.time()

    def get_ready() -> Prepared:
        parts = prepared(config)
        parts.loaders.setup("fit")
        parts.loaders.train_dataloader()  # an augmentation that cannot be read is told here
        return parts

    parts = team.first_then_others(get_ready)
    card, loaders = parts.card, parts.loaders
    if team.world > 1 and config.optim.sync_batchnorm:
        synchronise(parts.network)
    sharded = config.run.strategy == "fsdp"
    unused = team.world > 1 and not sharded and has_unused(parts.network, torch.zeros(1, 3, *card.input.hw))
    trainer, progress = build_trainer(config, out, team, unused)
    steps, images_per_step = steps_of(loaders, trainer, config)
    total_epochs = epochs_of(config.optim, steps)
    stops = config.run.until is not None and config.run.until < total_epochs
    trainer.fit_loop.max_epochs = config.run.until if stops else total_epochs
    if config.result.diagnose_at:
        steps_in_all = steps * total_epochs
        trainer.callbacks.insert(2, Underway(config, out, parts, steps_in_all, progress))  # type: ignore[attr-defined]
    progress.in_force = in_force(config, card, loaders, trainer, steps, images_per_step)
    if config.optim.grad_checkpointing:
        checkpoint_blocks(parts.problem.backbone(parts.network))
    module = Trainee(
        parts.network, parts.objective, parts.problem, config, steps, images_per_step, out, parts.examples
    )

    # What is deployed is put into this one: the network itself stays in shares.
    spare = copy.deepcopy(parts.network) if sharded and team.rank == 0 else None

    # From here on files are written: everything that the user could have got wrong has been looked at.
    with contextlib.ExitStack() as held:
        resumed = team.decide(lambda: opened(config, out, held))
        announce(config, out, parts.network, card, loaders, trainer)
        fit(trainer, module, BatchModule(loaders), resumed, out)
        if not progress.rows:  # it had ended before, and only its record was missing
            progress.read(total_epochs)
        if stops:
            if team.rank == 0:
                say(
                    f"stopped after epoch {config.run.until} of {total_epochs}.{way_on(out)}",
                    Console(stderr=True),
                )
            return Run(out, {"task": config.task, "until": config.run.until, "result": module.val_results})
        state = whole_state(module.evaluated.state_dict(), keep=spare is not None) if sharded else {}
        if team.rank:
            return Run(out, {"task": config.task, "result": module.val_results})
        network = module.evaluated
        if spare is not None:
            network = spare
            network.load_state_dict(state)
            set_entries(network, entries(module.evaluated))
        card.weights = "ema" if module.ema is not None else "last"
        if config.result.keep == "best":
            network.load_state_dict(load_file(out / "checkpoints" / "best.safetensors"))
            card.weights += ", best epoch"
        network = network.cpu().eval()
        still_there(out)
        save_deployed(out, network, card)
        if team.world > 1:
            network, _ = load_deployed(out)  # without what synchronises
        info = record(config, module, card, progress, time.time() - started, loaders.skipped)
        diagnose_run(config, out, network, parts, info, progress.rows)
        write_json(out / "run.json", info)  # last: a folder with this file is a finished run
        return Run(out, info)


def opened(config: TrainConfig, out: Path, held: contextlib.ExitStack) -> Path | None:
    """Lock the run folder and write the options into it; returns the checkpoint to go on from.

    Raises:
        UserError: another process writes there, or every checkpoint is damaged.
    """
    held.enter_context(writing(out))
    sweep(out)
    resumed, said = newest_good(out / "checkpoints") if config.run.resume else (None, [])
    for line in said:
        print(line, file=sys.stderr, flush=True)
    if config.run.overwrite:
        clear_folder(out)
    (out / "run.json").unlink(missing_ok=True)  # a run made longer has not ended
    write_atomic(out / "config.yaml", config.to_yaml(), durable=True)
    return resumed
