"""What a study is: its options, and the runs that they stand for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deepvit import cures
from deepvit.errors import UserError
from deepvit.training.config import TrainConfig


@dataclass
class StudyConfig:
    """Options of ``deepvit study``."""

    title: str = ""
    """One line on what the study asks, for its report."""
    depths: list[int] = field(default_factory=list)
    """Numbers of blocks; empty: the model's own."""
    methods: list[str] = field(default_factory=lambda: ["plain", "reattention"])
    """What is done to the model: plain, cures, diversity, and sums of them, as attnscale@last:6 or reattention+diversity."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; mean and spread are taken over them."""
    diversity: dict[str, float] = field(
        default_factory=lambda: {"patch_cosine": 1.0, "patch_contrastive": 1.0, "patch_mixing": 1.0}
    )
    """Losses and weights that `diversity` in a method stands for; the weight 1 of each is the paper's setting."""
    cure_args: dict[str, Any] = field(default_factory=dict)
    """Options of cures, by cure, as --cure_args.reattention '{"init": "official"}'."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Options of every run, as --train.epochs 10."""
    out: str = "study"
    """Folder of the study: its runs, tables, figure and report."""
    jobs: int = 1
    """Runs at a time, each in a process of its own; small networks share the cores better so, but seconds an epoch then
    count the others too."""
    overwrite: bool = False
    """Start anew where the folder holds a study with other options."""

    def __post_init__(self) -> None:
        """Refuse an empty or impossible grid, and every method that cannot be read."""
        if not self.methods or not self.seeds:
            raise UserError("a study needs at least one method and one seed")
        for name, values in (("methods", self.methods), ("seeds", self.seeds), ("depths", self.depths)):
            if len(set(values)) != len(values):
                raise UserError(f"{name} names a value twice: {', '.join(map(str, values))}")
        if self.jobs < 1:
            raise UserError(f"jobs={self.jobs} must be at least 1")
        if any(depth < 1 for depth in self.depths):
            raise UserError(f"depths must be at least 1, not {min(self.depths)}")
        for method in self.methods:
            cures.parse_method(method)

    @classmethod
    def from_yaml(cls, path: str | Path, **options: Any) -> StudyConfig:
        """Read a study recipe; ``options`` replace what it says, and those in ``train`` one by one."""
        try:
            values = yaml.safe_load(Path(path).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from None
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or "methods" not in values:
            raise UserError(
                f"{path} is no study recipe (it names no methods); train by it: deepvit train --config {path}"
            )
        train = options.pop("train", {})
        values.update(options)
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"no study option is called {unknown[0]!r}; there are {', '.join(sorted(known))}")
        merged = {**values.pop("train", {}), **(vars(train) if isinstance(train, TrainConfig) else train)}
        return cls(train=TrainConfig.from_options(merged), **values)


@dataclass(frozen=True)
class Cell:
    """One run of the grid: ``depth`` is None where the model's own is kept."""

    method: str
    depth: int | None
    seed: int

    @property
    def label(self) -> str:
        """Short name, also of the run folder."""
        depth = "" if self.depth is None else f"-d{self.depth}"
        return f"{self.method.replace(':', '-').replace('/', '-')}{depth}-s{self.seed}"


def cells(study: StudyConfig) -> list[Cell]:
    """The runs in the order in which they are done: seed by seed, so that an early stop leaves whole comparisons."""
    depths: list[int | None] = [*study.depths] if study.depths else [None]
    return [Cell(method, depth, seed) for seed in study.seeds for depth in depths for method in study.methods]


def config_of(study: StudyConfig, cell: Cell) -> TrainConfig:
    """The training options of one run."""
    method = cures.parse_method(cell.method)
    arguments = dict(study.train.model_args)
    if cell.depth is not None:
        arguments["depth"] = cell.depth
    losses = {**study.train.losses, **(study.diversity if method.diversity else {})}
    return dataclasses.replace(
        study.train,
        model_args=arguments,
        cures=method.cures,
        cure_args={name: study.cure_args[name] for name in method.names if name in study.cure_args},
        losses=losses,
        seed=cell.seed,
        out=str(Path(study.out) / "runs" / cell.label),
        resume=False,
        overwrite=False,
    )
