"""The options of a run, by what belongs together; each is defined here and nowhere else.

The options of ``RunOptions`` are exactly those that may change when a run goes on: none of them changes the weights that
come out. The one exception is ``config.LENGTHENS``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from deepvit.data import AugmentConfig, DataOptions
from deepvit.errors import UserError
from deepvit.options import spelt
from deepvit.training.devices import Devices
from deepvit.training.guards import Policy

Precision = Literal["auto", "32", "bf16", "16"]


@dataclass
class ModelOptions:
    """Which network."""

    name: str = spelt("model", default="deepvit_tiny_d16_patch4_32")
    """Model name: any of timm's, ours included (`deepvit list models`)."""
    args: dict[str, Any] = spelt("model_args", default_factory=dict)
    """The model's own arguments, as --model.KEY VALUE (for example --model.depth 24)."""
    weights: str | None = None
    """Weights to start from: `pretrained` (timm's), a checkpoint file or a run folder."""
    drop_path: float | None = None
    """Stochastic depth rate of the last block, growing linearly with depth; by default the model's own."""
    head_dropout: float | None = None
    """Dropout before the classifier; by default the model's own."""

    def __post_init__(self) -> None:
        """Refuse rates that are none."""
        for name in ("drop_path", "head_dropout"):
            below_one(name, getattr(self, name))


@dataclass
class CureOptions:
    """What is changed in the network."""

    names: str = spelt("cures", default="")
    """Cures put into the model, by name, comma separated (`deepvit list cures`)."""
    blocks: str = spelt("cure_blocks", default="all")
    """Blocks that the cures go into: all, first:N, last:N, 5-11, or auto (those that a collapse report names)."""
    init: Literal["auto", "identity", "paper"] = spelt("cure_init", default="auto")
    """Start of the cures: paper (the source's own initial values) or identity (the network's function unchanged); auto is
    identity where there are --weights to keep, else paper."""
    args: dict[str, Any] = spelt("cure_args", default_factory=dict)
    """Options of the cures, as --cure_args.NAME '{"option": value}'."""
    report: str | None = spelt("cure_report", default=None)
    """A collapse.json from which blocks `auto` are taken (`--cures cut@auto`); by default that of the run in `--weights`."""


@dataclass
class LossOptions:
    """What is minimised beside the task's own loss."""

    weights: dict[str, float] = spelt("losses", default_factory=dict)
    """Weights of diversity losses, as --losses.patch_cosine 1 (also patch_contrastive, patch_mixing, attention_cosine)."""
    args: dict[str, Any] = spelt("loss_args", default_factory=dict)
    """Options of the losses, as --loss_args.forms '{"patch_contrastive": "official"}'; --loss_args.teacher names the frozen
    network of gram_anchoring and patch_kernel_alignment: a run folder, or a timm name for its published weights."""


@dataclass
class ImageOptions:
    """What is trained on."""

    spec: str = spelt("data", default="digits")
    """Training data: digits, a folder or .tar of class folders, torch/NAME, hfds/NAME, wds/NAME (`deepvit list data`)."""
    source: DataOptions = spelt("data_args", default_factory=DataOptions)
    """Options of the data source, as --data.KEY VALUE."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation; what is not set is chosen by the size of the images."""
    max_train_images: int | None = None
    """Train on at most this many images, evenly spaced over the set (by class, where it is sorted so)."""
    max_val_images: int | None = None
    """Validate on at most this many images, evenly spaced in the same way."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What an image that cannot be read does: stop ends the run, skip leaves it out and counts it (up to 5% of them)."""

    def __post_init__(self) -> None:
        """Refuse counts that leave nothing."""
        for name in ("max_train_images", "max_val_images"):
            at_least(name, getattr(self, name), 1)


@dataclass
class OptimOptions:
    """How it is optimised."""

    epochs: int = 20
    """Passes over the training images."""
    iterations: int | None = None
    """Steps of the optimizer instead of `epochs`: the run ends with the epoch in which they are reached."""
    batch_size: int = 64
    """Images of one step on one device."""
    accumulate: int = 1
    """Batches whose gradients are added up before each step of the optimizer."""
    lr: float | None = None
    """Peak learning rate; by default 1e-3 x sqrt(images a step / 256), between 5e-4 and 2e-3."""
    schedule: Literal["cosine", "poly"] = "cosine"
    """How the learning rate falls after the warm-up: by a cosine, or linearly (poly of power 1)."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule."""
    warmup_steps: int | None = None
    """Steps of linear warm-up from 1e-6; by default 5% of all steps, at least 10 and at most 10,000."""
    cooldown_epochs: int = 0
    """Epochs at the minimum learning rate after the schedule, in addition to `epochs` or `iterations`."""
    weight_decay: float = 0.05
    """Decoupled weight decay (norms, biases, tokens and position tables are exempt)."""
    layer_decay: float | None = None
    """Factor by which the learning rate falls from each block to the one below it (fine-tuning: 0.65 to 0.9)."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then validated and saved; 0 switches it off."""
    precision: Precision = "auto"
    """Arithmetic: auto (bf16 on accelerators that have it, else 32), 32, bf16 or 16 (mixed)."""
    on_nonfinite: str = "stop"
    """What a step with a gradient that is not finite does: stop, skip:N (leave out up to N such steps) or fp32_attention
    (leave it out, and compute attention in float32 from then on)."""
    grad_checkpointing: bool = False
    """Keep only what enters each block and compute the rest again in the backward pass: less memory, a third more time."""
    sync_batchnorm: bool = True
    """With several processes, take the statistics of batch norms over all of them."""
    seed: int = 0
    """Seed of everything random: weights, order, augmentation, dropout."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant, each by its name."""
        for name, least in (
            ("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("cooldown_epochs", 0), ("clip_grad", 0),
            ("weight_decay", 0), ("min_lr", 0), ("seed", 0), ("warmup_steps", 0), ("iterations", 1),
        ):  # fmt: skip
            at_least(name, getattr(self, name), least)
        below_one("ema_decay", self.ema_decay)
        Policy.read(self.on_nonfinite)
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr={self.lr} must be above 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay} must be in (0, 1]")


@dataclass
class ResultOptions:
    """What a run keeps and measures."""

    keep: Literal["last", "best"] = "last"
    """Weights that the run deploys: of the last epoch, or of the epoch best in validation."""
    monitor_every: int = 0
    """Measure collapse on a fixed probe batch every so many steps (0: only after training)."""
    diagnose_images: int = 128
    """Validation images in the collapse report written after training (0: no report)."""
    diagnose_at: list[float] = field(default_factory=list)
    """Measure collapse also at these shares of training, as 0 0.1 0.5, into underway/SHARE/collapse.json of the run."""
    diagnose_lesions: Literal["auto", "off", "full"] = "auto"
    """Lesions in these reports: auto (within a time), off, full (all, on all of `diagnose_images`)."""

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        for name in ("monitor_every", "diagnose_images"):
            at_least(name, getattr(self, name), 0)
        for share in self.diagnose_at:
            below_one("diagnose_at", share)
        if self.diagnose_at and not self.diagnose_images:
            raise UserError("--diagnose_at needs images: leave out --diagnose_images 0")


@dataclass
class RunOptions:
    """Where and how it runs: all that may change when a run goes on."""

    out: str | None = None
    """Run folder; by default runs/MODEL-DATA."""
    devices: str = "auto"
    """Devices of one machine, a process each: auto (one), cpu, cpu:N (N processes), a number of accelerators, or their
    indices as 0,1; torchrun and srun start the processes themselves."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """What several processes hold: ddp (auto) the whole network each, fsdp each its share of weights, gradients and
    moments."""
    nodes: int | None = None
    """Machines; each is then given MASTER_ADDR, MASTER_PORT and NODE_RANK (torchrun and srun say all that themselves)."""
    workers: int | None = None
    """Processes that load large images; none is used for small sets, which are held in memory."""
    compile: bool = False
    """Compile the model by torch.compile."""
    save_steps: int = 0
    """Optimizer steps between two savings inside an epoch (0: after each epoch only)."""
    save_minutes: float = 10.0
    """Minutes between two savings inside an epoch (0: after each epoch only)."""
    resume: bool | Literal["auto"] = False
    """Go on with the run in `out`, from where it was saved; auto starts it if there is none."""
    overwrite: bool = False
    """Replace the run in `out`."""
    until: int | None = None
    """Stop after this epoch of the schedule, saved as if interrupted: --resume goes on."""
    log_every: int = 20
    """Steps between two readings of the losses."""
    logger: Literal["tensorboard", "wandb", "both", "none"] = "tensorboard"
    """Where curves are shown beside metrics.csv: tensorboard, wandb (Weights & Biases), both, none."""
    progress: bool = True
    """Show a progress bar with the time left."""

    def __post_init__(self) -> None:
        """Refuse counts that cannot be meant, and two ways of treating a folder at once."""
        Devices.read(self.devices)
        at_least("nodes", self.nodes, 1)
        at_least("log_every", self.log_every, 1)
        at_least("workers", self.workers, 0)
        at_least("until", self.until, 1)
        at_least("save_steps", self.save_steps, 0)
        at_least("save_minutes", self.save_minutes, 0)
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it: give one of them")


def at_least(name: str, value: float | None, least: float) -> None:
    """Refuse a value below ``least``."""
    if value is not None and value < least:
        raise UserError(f"{name}={value} must be at least {least}")


def below_one(name: str, value: float | None) -> None:
    """Refuse a value outside [0, 1)."""
    if value is not None and not 0 <= value < 1:
        raise UserError(f"{name}={value} must be in [0, 1)")
