"""What a study is: its options, and the runs that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from deepvit import cures, tasks
from deepvit.errors import UserError
from deepvit.options import Option, build, check_names, merged, options_of
from deepvit.parsing import checked, json_ready, read_yaml
from deepvit.training.config import TrainConfig, train_options


@dataclass
class StudyOptions:
    """Options of ``deepvit study`` beside those of its runs."""

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
    out: str = "study"
    """Folder of the study: its runs, tables, figure and report."""
    jobs: int | None = None
    """Runs at a time, each in a process of its own: by default one, or all with slurm. Small networks share the cores better
    with several, but seconds an epoch then count the others too."""
    executor: Literal["processes", "local", "slurm"] = "processes"
    """Where runs are done: processes of this one, or jobs of submitit, on this machine (local) or in a SLURM queue."""
    executor_args: dict[str, Any] = field(default_factory=dict)
    """Parameters of submitit, as --executor_args.timeout_min 600 or --executor_args.slurm_partition gpu."""
    halving: bool = False
    """Successive halving: all methods for a quarter of the epochs with the first seed, the better half (of each depth) for
    half of them, the better half of these to the end with all seeds; halving.md says what it saved and how sure it is."""
    overwrite: bool = False
    """Start anew where the folder holds a study with other options."""

    def __post_init__(self) -> None:
        """Refuse an empty or impossible grid, and every method that cannot be read."""
        if not self.methods or not self.seeds:
            raise UserError("a study needs at least one method and one seed")
        for name, values in (("methods", self.methods), ("seeds", self.seeds), ("depths", self.depths)):
            if len(set(values)) != len(values):
                raise UserError(f"{name} names a value twice: {', '.join(map(str, values))}")
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"jobs={self.jobs} must be at least 1")
        if any(depth < 1 for depth in self.depths):
            raise UserError(f"depths must be at least 1, not {min(self.depths)}")
        for method in self.methods:
            cures.parse_method(method)


class StudyConfig(StudyOptions):
    """Options of ``deepvit study``; ``train`` holds those of every run, as --train.epochs 10.

    Args:
        train: options of :class:`TrainConfig` by name.
        **options: fields of :class:`StudyOptions`.

    Raises:
        UserError: an option that does not exist, a value of another type, an empty or impossible grid.
    """

    def __init__(self, train: dict[str, Any] | TrainConfig | None = None, **options: Any) -> None:
        super().__init__(**vars(build(StudyOptions, checked(options, options_of(StudyOptions), "study"))))
        self.train = train if isinstance(train, TrainConfig) else TrainConfig(**(train or {}))
        if self.train.run.until is not None:
            raise UserError(
                "train.until stops every run of the study before its end; for a short first look take --halving"
            )

    @classmethod
    def from_yaml(cls, path: str | Path, **options: Any) -> StudyConfig:
        """Read a study recipe; ``options`` replace what it says, and those in ``train`` one by one."""
        values = read_yaml(path, "study recipe")
        if "methods" not in values:
            raise UserError(
                f"{path} is no study recipe (it names no methods); train by it: deepvit train --config {path}"
            )
        known = [option.name for option in options_of(StudyOptions)]
        for given in (values, options):
            check_names(given, [*known, "train"], "study")
            if isinstance(given.get("train"), TrainConfig):
                given["train"] = {n: given["train"][n] for n in given["train"].changed()}
            if not isinstance(given.get("train", {}), dict):
                raise UserError(
                    f"train={given['train']!r} must be a mapping of training options, as {{epochs: 10}}"
                )
        return cls(**merged(values, options))

    def with_train(self, **changes: Any) -> StudyConfig:
        """The same study with some options of its runs replaced."""
        own = {option.name: getattr(self, option.name) for option in options_of(StudyOptions)}
        return StudyConfig(train=self.train.with_options(**changes), **own)

    def plain(self) -> dict[str, Any]:
        """Every option as YAML has it."""
        return dict(json_ready({**vars(self), "train": self.train.options()}))


def study_options(task: str = tasks.DEFAULT) -> tuple[Option, ...]:
    """The options of ``deepvit study``: its own, and with ``train.`` before them those of its runs."""
    runs = [
        Option(f"train.{o.name}", o.hint, o.default, o.help, ("train", *o.path)) for o in train_options(task)
    ]
    return (*options_of(StudyOptions), *runs)


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
    arguments = dict(study.train.model.args)
    if cell.depth is not None:
        arguments["depth"] = cell.depth
    losses = {**study.train.loss.weights, **(study.diversity if method.diversity else {})}
    return study.train.with_options(
        model_args=arguments,
        cures=method.cures,
        cure_args={name: study.cure_args[name] for name in method.names if name in study.cure_args},
        losses=losses,
        seed=cell.seed,
        out=str(Path(study.out) / "runs" / cell.label),
        resume=False,
        overwrite=False,
    )
