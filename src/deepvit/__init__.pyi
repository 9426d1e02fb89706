"""Types of the public face. Written by ``python -m deepvit.commands.stub``; not to be edited."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import nn

from deepvit.collapse.lesions.score import Score
from deepvit.data import InputSpec
from deepvit.experiments.grid import StudyConfig
from deepvit.report import Report
from deepvit.report.sections import Section
from deepvit.runs import Run
from deepvit.training.config import TrainConfig
from deepvit import capturing as capturing
from deepvit import collapse as collapse
from deepvit import cures as cures
from deepvit import data as data
from deepvit import layers as layers
from deepvit import losses as losses
from deepvit import ops as ops
from deepvit import report as report
from deepvit import runs as runs
from deepvit import tasks as tasks
from deepvit import training as training
from deepvit.benchmarking.run import benchmark as benchmark
from deepvit.capturing import capture as capture
from deepvit.collapse.probe import CollapseProbe as CollapseProbe
from deepvit.commands.check_data import check_data as check_data
from deepvit.commands.compare import compare as compare
from deepvit.commands.evaluate import evaluate as evaluate
from deepvit.commands.figures import figures as figures
from deepvit.commands.predict import predict as predict
from deepvit.exporting import export as export
from deepvit.hubs.push import push as push
from deepvit.layers import ReAttention as ReAttention
from deepvit.models import convert as convert
from deepvit.models import load_official as load_official
from deepvit.runs import load_deployed as load_deployed
from deepvit.training.hf_monitor import CollapseTrainerCallback as CollapseTrainerCallback
from deepvit.training.monitor import CollapseMonitor as CollapseMonitor

__version__: str
_PUBLIC: dict[str, str]
_MODULES: tuple[str, ...]
__all__ = [
    'capturing',
    'collapse',
    'cures',
    'data',
    'layers',
    'losses',
    'ops',
    'report',
    'runs',
    'tasks',
    'training',
    'CollapseMonitor',
    'CollapseProbe',
    'CollapseTrainerCallback',
    'ReAttention',
    'benchmark',
    'capture',
    'check_data',
    'compare',
    'convert',
    'diagnose',
    'evaluate',
    'export',
    'figures',
    'load_deployed',
    'load_official',
    'predict',
    'push',
    'study',
    'train',
]

class _DataArgs(TypedDict, total=False):
    class_map: dict[str, int] | str | None
    val_fraction: float | None
    split_seed: int | None
    layout: Literal['classes', 'parts'] | None
    root: str | None
    num_classes: int | None
    colours: dict[str, Any] | str | None
    void: int | list[int] | None
    first_id: int | None
    download: bool | None
    scenes: int | None
    scene_size: int | None

class _Augment(TypedDict, total=False):
    crop_padding: int | None
    crop_scale: tuple[float, float] | None
    crop_ratio: tuple[float, float]
    hflip: float | None
    vflip: float
    randaugment: str | None
    color_jitter: float | None
    random_erasing: float | None
    erasing_mode: str
    erasing_count: int
    mixup: float | None
    cutmix: float | None
    mixup_prob: float
    mixup_switch_prob: float
    mixup_mode: str
    label_smoothing: float | None

class _Scene(TypedDict, total=False):
    crop_size: int | None
    short_side: int | None
    scale: tuple[float, float] | None
    max_share: float
    hflip: float | None
    photometric: float | None

class _Train(TypedDict, total=False):
    task: str
    model: str
    model_args: dict[str, Any]
    weights: str | None
    drop_path: float | None
    head_dropout: float | None
    cures: str
    cure_blocks: str
    cure_init: Literal['auto', 'identity', 'paper']
    cure_args: dict[str, Any]
    cure_report: str | None
    losses: dict[str, float]
    loss_args: dict[str, Any]
    data: str
    data_args: _DataArgs
    augment: _Augment
    max_train_images: int | None
    max_val_images: int | None
    unreadable: Literal['stop', 'skip']
    epochs: int
    iterations: int | None
    batch_size: int
    accumulate: int
    lr: float | None
    schedule: Literal['cosine', 'poly']
    min_lr: float
    warmup_steps: int | None
    cooldown_epochs: int
    weight_decay: float
    layer_decay: float | None
    clip_grad: float
    ema_decay: float
    precision: Literal['auto', '32', 'bf16', '16']
    on_nonfinite: str
    grad_checkpointing: bool
    sync_batchnorm: bool
    seed: int
    keep: Literal['last', 'best']
    monitor_every: int
    diagnose_images: int
    diagnose_at: list[float]
    diagnose_lesions: Literal['auto', 'off', 'full']
    out: str | None
    devices: str
    strategy: Literal['auto', 'ddp', 'fsdp']
    nodes: int | None
    workers: int | None
    compile: bool
    save_steps: int
    save_minutes: float
    resume: bool | Literal['auto']
    overwrite: bool
    until: int | None
    log_every: int
    logger: Literal['tensorboard', 'wandb', 'both', 'none']
    progress: bool
    head: Literal['upernet', 'linear']
    channels: int | None
    decoder_dropout: float
    aux_weight: float
    frozen: bool
    class_weights: Literal['none', 'inverse', 'median']
    scene: _Scene

def train(
    config: TrainConfig | None = None,
    *,
    given: Collection[str] | None = None,
    task: str = 'classification',
    model: str = 'deepvit_tiny_d16_patch4_32',
    model_args: dict[str, Any] = ...,
    weights: str | None = None,
    drop_path: float | None = None,
    head_dropout: float | None = None,
    cures: str = '',
    cure_blocks: str = 'all',
    cure_init: Literal['auto', 'identity', 'paper'] = 'auto',
    cure_args: dict[str, Any] = ...,
    cure_report: str | None = None,
    losses: dict[str, float] = ...,
    loss_args: dict[str, Any] = ...,
    data: str = 'digits',
    data_args: _DataArgs = ...,
    augment: _Augment = ...,
    max_train_images: int | None = None,
    max_val_images: int | None = None,
    unreadable: Literal['stop', 'skip'] = 'stop',
    epochs: int = 20,
    iterations: int | None = None,
    batch_size: int = 64,
    accumulate: int = 1,
    lr: float | None = None,
    schedule: Literal['cosine', 'poly'] = 'cosine',
    min_lr: float = 1e-05,
    warmup_steps: int | None = None,
    cooldown_epochs: int = 0,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    clip_grad: float = 1.0,
    ema_decay: float = 0.0,
    precision: Literal['auto', '32', 'bf16', '16'] = 'auto',
    on_nonfinite: str = 'stop',
    grad_checkpointing: bool = False,
    sync_batchnorm: bool = True,
    seed: int = 0,
    keep: Literal['last', 'best'] = 'last',
    monitor_every: int = 0,
    diagnose_images: int = 128,
    diagnose_at: list[float] = ...,
    diagnose_lesions: Literal['auto', 'off', 'full'] = 'auto',
    out: str | None = None,
    devices: str = 'auto',
    strategy: Literal['auto', 'ddp', 'fsdp'] = 'auto',
    nodes: int | None = None,
    workers: int | None = None,
    compile: bool = False,
    save_steps: int = 0,
    save_minutes: float = 10.0,
    resume: bool | Literal['auto'] = False,
    overwrite: bool = False,
    until: int | None = None,
    log_every: int = 20,
    logger: Literal['tensorboard', 'wandb', 'both', 'none'] = 'tensorboard',
    progress: bool = True,
    head: Literal['upernet', 'linear'] = 'upernet',
    channels: int | None = None,
    decoder_dropout: float = 0.1,
    aux_weight: float = 0.4,
    frozen: bool = False,
    class_weights: Literal['none', 'inverse', 'median'] = 'none',
    scene: _Scene = ...,
) -> Run: ...

def study(
    recipe: str,
    config: StudyConfig | None = None,
    *,
    train: _Train | TrainConfig = ...,
    title: str = '',
    depths: list[int] = ...,
    methods: list[str] = ...,
    seeds: list[int] = ...,
    diversity: dict[str, float] = ...,
    cure_args: dict[str, Any] = ...,
    out: str = 'study',
    jobs: int | None = None,
    executor: Literal['processes', 'local', 'slurm'] = 'processes',
    executor_args: dict[str, Any] = ...,
    halving: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]: ...

def diagnose(
    model: str | nn.Module,
    data: Any = None,
    out: str | None = None,
    images: int = 256,
    blocks: str | None = None,
    lesions: Literal['auto', 'off', 'full'] = 'auto',
    figures: bool = False,
    arch: str | None = None,
    model_args: dict[str, Any] | None = None,
    pretrained: bool = False,
    batch_size: int = 16,
    device: str = 'auto',
    progress: bool = True,
    data_args: dict[str, Any] | None = None,
    *,
    input: int | tuple[int, int] | InputSpec | None = None,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
    attention_images: int = 64,
    maps: int = 4,
    score: Score | None = None,
    notes: Sequence[str] = ...,
    provenance: Mapping[str, Any] | None = None,
    sections: Sequence[Section] = ...,
    foremost: Sequence[str] = ...,
) -> Report: ...
