"""The one schema of training options: command line, YAML and Python call are all read from this dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from deepvit.data import AugmentConfig
from deepvit.errors import UserError

Precision = Literal["auto", "32", "bf16", "16"]

# What may differ between a run and its continuation: none of these changes the weights that come out.
_FREE_ON_RESUME = {"out", "resume", "overwrite", "devices", "workers", "log_every", "progress", "compile"}


@dataclass
class TrainConfig:
    """Options of ``deepvit train``."""

    model: str = "deepvit_tiny_d16_patch4_32"
    """Model name: any of timm's, ours included (`deepvit list models`)."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """The model's own arguments, as --model.KEY VALUE (for example --model.depth 24)."""
    weights: str | None = None
    """Weights to start from: `pretrained` (timm's), a checkpoint file or a run folder."""
    cures: str = ""
    """Cures put into the model, by name, comma separated (`deepvit list cures`)."""
    cure_blocks: str = "all"
    """Blocks that the cures go into: all, first:N, last:N, 5-11, or auto (with --cure_report)."""
    cure_init: Literal["auto", "identity", "paper"] = "auto"
    """Start of the cures: paper (the source's own initial values) or identity (the network's function unchanged); auto is
    identity where there are --weights to keep, else paper."""
    cure_args: dict[str, Any] = field(default_factory=dict)
    """Options of the cures, as --cure_args.NAME '{"option": value}'."""
    cure_report: str | None = None
    """A collapse.json from which `--cure_blocks auto` takes the blocks."""
    losses: dict[str, float] = field(default_factory=dict)
    """Weights of diversity losses, as --losses.patch_cosine 1 (also patch_contrastive, patch_mixing, attention_cosine)."""
    loss_args: dict[str, Any] = field(default_factory=dict)
    """Options of the diversity losses, as --loss_args.forms '{"patch_contrastive": "official"}'."""

    data: str = "digits"
    """Training data: digits, a folder or .tar of class folders, torch/NAME, hfds/NAME, wds/NAME (`deepvit list data`)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation; what is not set is chosen by the size of the images."""
    max_train_images: int | None = None
    """Train on at most this many images (a fixed random subset)."""
    max_val_images: int | None = None
    """Validate on at most this many images (a fixed random subset)."""
    workers: int | None = None
    """Processes that load large images; none is used for small sets, which are held in memory."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 64
    """Images of one step on one device."""
    accumulate: int = 1
    """Batches whose gradients are added up before each step of the optimizer."""
    lr: float | None = None
    """Peak learning rate; by default 1e-3 x sqrt(images a step / 256), between 5e-4 and 2e-3."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_steps: int | None = None
    """Steps of linear warm-up from 1e-6; by default 5% of all steps, at least 10 and at most 10,000."""
    cooldown_epochs: int = 0
    """Epochs at the minimum learning rate after the cosine, in addition to `epochs`."""
    weight_decay: float = 0.05
    """Decoupled weight decay (norms, biases, tokens and position tables are exempt)."""
    layer_decay: float | None = None
    """Factor by which the learning rate falls from each block to the one below it (fine-tuning: 0.65 to 0.9)."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    drop_path: float | None = None
    """Stochastic depth rate of the last block, growing linearly with depth; by default the model's own."""
    head_dropout: float | None = None
    """Dropout before the classifier; by default the model's own."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, which is then validated and saved; 0 switches it off."""

    out: str | None = None
    """Run folder; by default runs/MODEL-DATA."""
    seed: int = 0
    """Seed of everything random: weights, order, augmentation, dropout."""
    devices: str = "auto"
    """Devices: auto, cpu, a number of accelerators, or their indices as 0,1."""
    precision: Precision = "auto"
    """Arithmetic: auto (bf16 on accelerators that have it, else 32), 32, bf16 or 16 (mixed)."""
    compile: bool = False
    """Compile the model by torch.compile."""
    resume: bool = False
    """Go on with the run in `out`, from its last whole epoch."""
    overwrite: bool = False
    """Replace the run in `out`."""
    keep: Literal["last", "best"] = "last"
    """Weights that the run deploys: of the last epoch, or of the epoch best in validation."""
    monitor_every: int = 0
    """Measure collapse on a fixed probe batch every so many steps (0: only after training)."""
    diagnose_images: int = 128
    """Validation images in the collapse report written after training (0: no report)."""
    log_every: int = 20
    """Steps between two readings of the losses."""
    progress: bool = True
    """Show a progress bar with the time left."""

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant, each by its name."""
        for name, least in (
            ("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("cooldown_epochs", 0), ("log_every", 1),
            ("monitor_every", 0), ("diagnose_images", 0), ("clip_grad", 0), ("weight_decay", 0), ("min_lr", 0), ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        for name, optional_least in (
            ("max_train_images", 1),
            ("max_val_images", 1),
            ("warmup_steps", 0),
            ("workers", 0),
        ):
            value = getattr(self, name)
            if value is not None and value < optional_least:
                raise UserError(f"{name}={value} must be at least {optional_least}")
        for name in ("ema_decay", "drop_path", "head_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name}={value} must be in [0, 1)")
        if self.lr is not None and not (self.lr > 0 and math.isfinite(self.lr)):
            raise UserError(f"lr={self.lr} must be above 0")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay={self.layer_decay} must be in (0, 1]")
        if self.resume and self.overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it: give one of them")

    # -- files and calls ---------------------------------------------------------------------------

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> TrainConfig:
        """Build from plain values (YAML or keyword arguments); unknown names raise with the nearest ones.

        Raises:
            UserError: an option that does not exist, or a value out of its range.
        """
        options = dict(options)
        names = [f.name for f in dataclasses.fields(cls)]
        for key in options:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=3)
                hint = f"; did you mean {', '.join(near)}?" if near else "; see deepvit train --help"
                raise UserError(f"no training option is called {key!r}{hint}")
        if isinstance(options.get("augment"), dict):
            known = [f.name for f in dataclasses.fields(AugmentConfig)]
            for key in options["augment"]:
                if key not in known:
                    raise UserError(f"no augmentation option is called {key!r}; there are {', '.join(known)}")
            values: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in options["augment"].items()
            }  # YAML has lists
            options["augment"] = AugmentConfig(**values)
        return cls(**options)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Read ``config.yaml`` of a run, or a training recipe."""
        try:
            value = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path} holds no training options (a mapping of names to values is expected)")
        return cls.from_options(value)

    def to_yaml(self) -> str:
        """Every option as YAML, in the order of this class: the run can be repeated from it."""
        values = dataclasses.asdict(self)
        values["resume"] = values["overwrite"] = False  # a record of the run, not of how it was started
        return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def changed(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        default = TrainConfig()
        names = [f.name for f in dataclasses.fields(self)]
        return [name for name in names if getattr(self, name) != getattr(default, name)]

    def check_continues(self, stored: TrainConfig, chosen: Collection[str]) -> None:
        """Refuse to continue ``stored`` with options that would make it another run.

        Args:
            stored: options of the run.
            chosen: names of the options that were given now; the others are taken from the run.

        Raises:
            UserError: an option was given that differs from the run's.
        """
        for f in dataclasses.fields(self):
            mine, theirs = getattr(self, f.name), getattr(stored, f.name)
            if f.name in chosen and f.name not in _FREE_ON_RESUME and mine != theirs:
                raise UserError(
                    f"--resume goes on with {f.name}={theirs!r} as the run was started, not {mine!r}: "
                    "leave it out, or start another run with --out"
                )
