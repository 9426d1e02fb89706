"""The one schema of training options: command line, YAML and Python call are all read from these dataclasses.

They are nested by what belongs together; who types an option sees one flat list (``deepvit.options``). The options of
``RunOptions`` are exactly those that may change when a run goes on: none of them changes the weights that come out. The
one exception is ``LENGTHENS``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from deepvit import tasks
from deepvit.data import AugmentConfig, DataOptions
from deepvit.errors import UserError
from deepvit.options import Option, build, flat, group, options_of, spelt
from deepvit.parsing import checked, json_ready, read_yaml
from deepvit.training.guards import Policy
from deepvit.training.processes import Devices

Precision = Literal["auto", "32", "bf16", "16"]
HINT = "; see deepvit train --help"


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
    """Blocks that the cures go into: all, first:N, last:N, 5-11, or auto (with --cure_report)."""
    init: Literal["auto", "identity", "paper"] = spelt("cure_init", default="auto")
    """Start of the cures: paper (the source's own initial values) or identity (the network's function unchanged); auto is
    identity where there are --weights to keep, else paper."""
    args: dict[str, Any] = spelt("cure_args", default_factory=dict)
    """Options of the cures, as --cure_args.NAME '{"option": value}'."""
    report: str | None = spelt("cure_report", default=None)
    """A collapse.json from which `--cure_blocks auto` takes the blocks."""


@dataclass
class LossOptions:
    """What is minimised beside the task's own loss."""

    weights: dict[str, float] = spelt("losses", default_factory=dict)
    """Weights of diversity losses, as --losses.patch_cosine 1 (also patch_contrastive, patch_mixing, attention_cosine)."""
    args: dict[str, Any] = spelt("loss_args", default_factory=dict)
    """Options of the diversity losses, as --loss_args.forms '{"patch_contrastive": "official"}'."""


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
    """Train on at most this many images (a fixed random subset)."""
    max_val_images: int | None = None
    """Validate on at most this many images (a fixed random subset)."""
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

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        for name in ("monitor_every", "diagnose_images"):
            at_least(name, getattr(self, name), 0)


@dataclass
class RunOptions:
    """Where and how it runs: all that may change when a run goes on."""

    out: str | None = None
    """Run folder; by default runs/MODEL-DATA."""
    devices: str = "auto"
    """Devices of one machine, a process each: auto (one), cpu, cpu:N (N processes), a number of accelerators, or their
    indices as 0,1; torchrun and srun start the processes themselves."""
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
        at_least("save_steps", self.save_steps, 0)
        at_least("save_minutes", self.save_minutes, 0)
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it: give one of them")


@dataclass
class _Groups:
    """All options that every task has."""

    task: str = tasks.DEFAULT
    """What is trained: classification, segmentation (`deepvit list tasks`)."""
    model: ModelOptions = group(ModelOptions)
    cure: CureOptions = group(CureOptions)
    loss: LossOptions = group(LossOptions)
    data: ImageOptions = group(ImageOptions)
    optim: OptimOptions = group(OptimOptions)
    result: ResultOptions = group(ResultOptions)
    run: RunOptions = group(RunOptions)


def train_options(task: str = tasks.DEFAULT) -> tuple[Option, ...]:
    """The options of ``deepvit train`` for a task, with its defaults, its own ones last."""
    kind = tasks.find(task)
    defaults = {"task": task, **kind.defaults()}
    return tuple(
        dataclasses.replace(option, default=defaults[option.name]) if option.name in defaults else option
        for option in (*options_of(_Groups), *options_of(kind.options))
    )


class TrainConfig:
    """Options of ``deepvit train``: made from option names, read by group (``config.optim.lr``).

    Args:
        **options: as typed on the command line, ``epochs=10, model_args={"depth": 24}``; what is not given has its default.

    Raises:
        UserError: an option that does not exist, a value of another type or out of its range.
    """

    def __init__(self, **options: Any) -> None:
        self.task = str(options.get("task", tasks.DEFAULT))
        kind = tasks.find(self.task)
        values = kind.defaults(options) | checked(options, train_options(self.task), "training", HINT)
        groups = build(_Groups, values)
        self.model: ModelOptions = groups.model
        self.cure: CureOptions = groups.cure
        self.loss: LossOptions = groups.loss
        self.data: ImageOptions = groups.data
        self.optim: OptimOptions = groups.optim
        self.result: ResultOptions = groups.result
        self.run: RunOptions = groups.run
        self.own: Any = build(kind.options, values)
        self._groups = groups

    @property
    def total_epochs(self) -> int:
        """Epochs of the schedule and of the cool-down, where they are not counted in steps."""
        return self.optim.epochs + self.optim.cooldown_epochs

    def options(self) -> dict[str, Any]:
        """Every option by its name."""
        return {**flat(self._groups), **flat(self.own)}

    def __getitem__(self, name: str) -> Any:
        """One option by its name."""
        return self.options()[name]

    def with_options(self, **changes: Any) -> TrainConfig:
        """The same options with some replaced."""
        return TrainConfig(**{**self.options(), **changes})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrainConfig) and self.options() == other.options()

    def __repr__(self) -> str:
        return f"TrainConfig({', '.join(f'{name}={self.options()[name]!r}' for name in self.changed())})"

    # -- files and calls ---------------------------------------------------------------------------

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> TrainConfig:
        """Build from plain values (YAML or keyword arguments)."""
        return cls(**options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Read ``config.yaml`` of a run, or a training recipe."""
        return cls(**read_yaml(path, "training options"))

    def to_yaml(self) -> str:
        """Every option as YAML, in the order of the groups: the run can be repeated from it."""
        values = json_ready(self.options())
        values["resume"] = values["overwrite"] = False  # a record of the run, not of how it was started
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def changed(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        default = {**TrainConfig(task=self.task).options(), "task": tasks.DEFAULT}
        return [name for name, value in self.options().items() if value != default[name]]

    def check_continues(self, stored: TrainConfig, chosen: Collection[str]) -> None:
        """Refuse to continue ``stored`` with options that would make it another run.

        Args:
            stored: options of the run.
            chosen: names of the options that were given now; the others are taken from the run.

        Raises:
            UserError: an option was given that differs from the run's.
        """
        before = stored.options()
        for name, mine in self.options().items():
            if name in chosen and name not in FREE_ON_RESUME and mine != before.get(name):
                if name == LENGTHENS and stored.optim.iterations is None:
                    if mine > before[name]:
                        continue
                    raise UserError(
                        f"--resume can make a run of {name}={before[name]} longer, not {mine}: leave it out"
                    )
                raise UserError(
                    f"--resume goes on with {name}={before.get(name)!r} as the run was started, not {mine!r}: "
                    "leave it out, or start another run with --out"
                )

    def continuing(self, stored: TrainConfig, out: str, chosen: Collection[str]) -> TrainConfig:
        """The options of a run that goes on: ``stored``, with ``RunOptions`` (but ``STAYING``) as they are asked for now.

        ``chosen`` as in ``check_continues``.
        """
        mine = self.options()
        names = (FREE_ON_RESUME - STAYING) | ({LENGTHENS, *STAYING} & set(chosen))
        changed = {name: mine[name] for name in names}
        return stored.with_options(**{**changed, "out": out, "resume": True})


FREE_ON_RESUME = frozenset(option.name for option in options_of(RunOptions))
"""Names of the options that may differ between a run and its continuation: those of ``RunOptions``, and no others."""
STAYING = frozenset({"logger"})
"""Those of them that stay what they were unless they are asked for anew: a run's curves go on where they began."""
LENGTHENS = "epochs"
"""The option that a continuation may raise, also of a run that has ended: from the present step on the learning rate then
follows the schedule of the new number of epochs, so the weights are not those of a run of that length from its start."""


def at_least(name: str, value: float | None, least: float) -> None:
    """Refuse a value below ``least``."""
    if value is not None and value < least:
        raise UserError(f"{name}={value} must be at least {least}")


def below_one(name: str, value: float | None) -> None:
    """Refuse a value outside [0, 1)."""
    if value is not None and not 0 <= value < 1:
        raise UserError(f"{name}={value} must be in [0, 1)")
