"""One training run from options to a run folder: checks first, then Lightning's Trainer, then the record."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.console import Console
from safetensors.torch import load_file

from deepvit.data import open_data
from deepvit.errors import UserError
from deepvit.files import write_atomic, write_json
from deepvit.training.build import build_model, native_size
from deepvit.training.callbacks import RunLog, clock
from deepvit.training.config import TrainConfig
from deepvit.training.datamodule import ImageDataModule
from deepvit.training.deploy import ModelCard, save_deployed
from deepvit.training.folder import Run, check_folder, clear_folder, command, hardware, read_run, versions
from deepvit.training.inference import input_options
from deepvit.training.module import Classifier
from deepvit.training.objective import Objective, patch_mix
from deepvit.training.trainer import build_trainer, fit


def train(config: TrainConfig | None = None, *, given: Collection[str] | None = None, **options: Any) -> Run:
    """Train a classifier and leave a run folder that holds everything about it.

    Nothing is written before model and data are known to be right.

    Args:
        config: all options at once.
        given: names of the options in ``config`` that were chosen and do not merely have their defaults: to go on
            with a run, these must agree with it. None: those that differ from their defaults.
        **options: fields of :class:`TrainConfig` by name (``model="deepvit_s_patch16_224", epochs=10``); with
            ``config``, they replace its fields.

    Returns:
        the run: its folder and its record.

    Raises:
        UserError: a mistake in the options, the data or the folder, in one line.
    """
    chosen = set(options)
    if config is not None:
        chosen |= set(config.changed() if given is None else given)
        options = {**vars(config), **options}
    config = TrainConfig.from_options(options)
    out = Path(config.out or default_out(config))
    if first_process():
        check_folder(out, resume=config.resume, overwrite=config.overwrite)
    if config.resume:
        stored = TrainConfig.from_yaml(out / "config.yaml")
        config.check_continues(stored, chosen)
        if (out / "run.json").exists():
            return read_run(out)
        free = {n: getattr(config, n) for n in ("devices", "workers", "progress", "compile", "log_every")}
        config = TrainConfig.from_options({**vars(stored), **free, "out": str(out), "resume": True})
    return _train(config, out)


def first_process() -> bool:
    """Whether this process is the one that writes: launchers start the same command once for each device."""
    return not any(int(os.environ.get(name, "0") or 0) for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"))


def default_out(config: TrainConfig) -> str:
    """``runs/MODEL-DATA``, the data by its last part."""
    return f"runs/{config.model.split('/')[-1].removeprefix('hf-hub:')}-{Path(config.data).stem or 'data'}"


def _train(config: TrainConfig, out: Path) -> Run:
    started = time.time()
    lightning.seed_everything(config.seed, verbose=False)
    data = open_data(config.data)  # its own split, whatever the seed of the run: runs stay comparable
    classes = len(data.class_names)
    if classes < 2:
        raise UserError(
            f"{config.data} has one class only ({data.class_names[0]}): there is nothing to tell apart"
        )
    model, card = build_model(config, data.class_names, native_size(data))
    options = {
        "workers": config.workers,
        "seed": config.seed,
        "progress": config.progress,
        **input_options(card),
    }
    options |= {"max_train_images": config.max_train_images, "max_val_images": config.max_val_images}
    images = ImageDataModule(data, batch_size=config.batch_size, augment=config.augment, **options)
    smoothing, mix = images.label_smoothing, None
    if config.losses.get("patch_mixing"):
        mix = patch_mix(model, classes, card.img_size, images.augment)
        cut_elsewhere = dataclasses.replace(config.augment, mixup=0.0, cutmix=0.0)
        images = ImageDataModule(data, batch_size=config.batch_size, augment=cut_elsewhere, **options)
    objective = Objective(
        model, classes, label_smoothing=smoothing, weights=config.losses, options=config.loss_args, mix=mix
    )
    images.setup("fit")
    trainer, progress = build_trainer(config, out)
    steps, images_per_step = steps_of(images, trainer, config)
    module = Classifier(model, objective, config, classes, steps, images_per_step)

    # From here on files are written: everything that the user could have got wrong has been looked at.
    images.train_dataloader()  # an augmentation that cannot be read is told here
    if first_process():
        if config.overwrite:
            clear_folder(out)
        write_atomic(out / "config.yaml", config.to_yaml())
    checkpoint = out / "checkpoints" / "last.ckpt"
    announce(config, out, model, card, images, trainer)
    fit(trainer, module, images, checkpoint if config.resume and checkpoint.exists() else None, out)

    if not progress.rows:  # it had ended before, and only its record was missing
        progress.read(config.epochs + config.cooldown_epochs)
    network = module.evaluated
    card.weights = "ema" if module.ema is not None else "last"
    if config.keep == "best":
        network.load_state_dict(load_file(out / "checkpoints" / "best.safetensors"))
        card.weights += ", best epoch"
    if not trainer.is_global_zero:
        return Run(out, {"result": module.val_results})
    network = network.cpu().eval()
    save_deployed(out, network, card)
    info = record(config, module, card, progress, time.time() - started)
    diagnose_run(config, out, network, card, images)
    write_json(out / "run.json", info)  # last: a folder with this file is a finished run
    return Run(out, info)


def steps_of(data: ImageDataModule, trainer: lightning.Trainer, config: TrainConfig) -> tuple[int, int]:
    """Optimizer steps of an epoch and images of a step, over all devices."""
    world = trainer.world_size
    share = len(data.train_set) // world
    batches = max(share // config.batch_size, 1)  # fewer images than a batch make one smaller batch
    return -(-batches // config.accumulate), config.batch_size * config.accumulate * world


def announce(
    config: TrainConfig,
    out: Path,
    model: torch.nn.Module,
    card: ModelCard,
    data: ImageDataModule,
    trainer: Any,
) -> None:
    """Say in one paragraph what is about to be trained, sizes chosen for the user included."""
    if not (config.progress and trainer.is_global_zero):
        return
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    chosen = {k: v for k, v in card.model_args.items() if k not in config.model_args}
    text = (
        f"{card.arch} ({parameters:.2f} M parameters) on {data.data.spec}: {len(data.train_set):,} training and "
        f"{len(data.val_set):,} validation images of {card.img_size}×{card.img_size}, {len(card.class_names)} classes"
    )
    if chosen:
        text += "; chosen for these images: " + ", ".join(f"--model.{k} {v}" for k, v in chosen.items())
    Console(stderr=True).print(f"{text}\nrun folder: {out}", highlight=False, markup=False)


def record(
    config: TrainConfig, module: Classifier, card: ModelCard, log: RunLog, seconds: float
) -> dict[str, Any]:
    """The record of a run: what was asked, on what it ran, what the deployed weights reach."""
    rows = log.rows
    times = sorted(float(row["seconds"]) for row in rows)
    top1 = [float(row["val/top1"]) for row in rows]
    # The weights of the epoch first to be best are those that BestWeights kept.
    deployed = rows[top1.index(max(top1))] if config.keep == "best" else rows[-1]
    result = {
        **{name: float(deployed[name]) for name in ("val/top1", "val/top5", "val/loss")},
        "epoch": int(deployed["epoch"]),
        "best/top1": max(top1),
        "last/top1": top1[-1],
        "seconds_per_epoch": times[len(times) // 2],
        "parameters": sum(p.numel() for p in module.model.parameters()),
        "epochs": len(rows),
        "steps": int(rows[-1]["step"]),
    }
    return {
        "format": "deepvit-run/1",
        "command": command(),
        "arch": card.arch,
        "model_args": card.model_args,
        "data": config.data,
        "seed": config.seed,
        "versions": versions(),
        "hardware": hardware(),
        "wall_seconds": seconds,
        "result": result,
    }


def diagnose_run(
    config: TrainConfig, out: Path, network: torch.nn.Module, card: ModelCard, data: ImageDataModule
) -> None:
    """Write ``collapse.json`` and ``report.html`` of the deployed weights.

    A network without attention over tokens has no such report: the reason is printed and training counts as done.
    """
    if not config.diagnose_images:
        return
    from deepvit.diagnostics import diagnose

    try:
        diagnose(
            network,
            data.val_loader_for(config.diagnose_images),
            out=out,
            images=config.diagnose_images,
            name=out.name,
            class_names=card.class_names,
            normalize=(card.input["mean"], card.input["std"]),
            progress=False,
            provenance={
                "data": config.data,
                "train": {"options": ["--config", str(out / "config.yaml")], "out": str(out)},
            },
        )
    except UserError as error:
        Console(stderr=True).print(f"no collapse report: {error}", highlight=False, markup=False)


def show(run: Run) -> None:
    """Print the result of a run and where it lies."""
    result = run.result
    if not first_process():
        return
    print(
        f"val top-1 {result['val/top1']:.2f}%, top-5 {result['val/top5']:.2f}%, loss {result['val/loss']:.4f}; "
        f"{result['parameters'] / 1e6:.2f} M parameters, {result['seconds_per_epoch']:.1f} s an epoch, "
        f"{clock(run.info['wall_seconds'])} in all"
    )
    print(f"run folder: {run.path}")
    if (run.path / "report.html").exists():
        print(f"collapse report: {run.path / 'report.html'}")
