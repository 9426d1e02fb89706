"""What one kind of problem is: everything that training, studies, reports and run folders ask of it.

A task is one class in one file, and one line in ``deepvit.tasks``. Its instance stands for one problem: the facts that
``model.json`` keeps (for a classifier the names of its classes), from which a run is rebuilt without its data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from deepvit.errors import UserError

if TYPE_CHECKING:
    from deepvit.data import AugmentConfig, DataOptions, ImageSet, InputSpec, Loaders
    from deepvit.data.checking import DataCheck
    from deepvit.data.loaders import Data, Unreadable
    from deepvit.report.sections import Section

Criterion = Callable[[Any, Any], dict[str, Tensor]]
"""(output of the network, targets) → the terms of the loss by name, weighted: their sum is minimised."""


@dataclass(frozen=True)
class Column:
    """A figure that validation gives; a meter may leave out one that says nothing of its problem, never the watched one.

    Attributes:
        key: ``val/KEY`` in metrics.csv and run.json, ``KEY`` in tables and JSON.
        heading: in tables and figures, with its unit.
        short: in a line of progress.
        digits: after the decimal point.
        unit: written behind the number, as ``%``.
        better: which way is better.
    """

    key: str
    heading: str
    short: str
    digits: int = 2
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"

    @property
    def title(self) -> str:
        """The heading without its unit."""
        return self.heading.removesuffix(f" {self.unit}") if self.unit else self.heading

    def told(self, value: float) -> str:
        """``top-1 97.21%``."""
        return f"{self.short} {value:.{self.digits}f}{self.unit}"


@dataclass
class NoOptions:
    """A task without options of its own."""


class Meter(Protocol):
    """Figures over a validation set, exact for any batch size and number of processes (a torchmetrics module)."""

    def update(self, output: Any, targets: Any) -> None:
        """Take in a batch."""

    def compute(self) -> dict[str, float]:
        """The figures, by the keys of the task's columns."""

    def reset(self) -> None:
        """Start anew."""


@dataclass
class Mixed:
    """A batch after mixing: images, targets, and the labels of the patches for the mixing loss (None without)."""

    images: Tensor
    targets: Any
    patches: Any = None


@dataclass(frozen=True)
class Settings:
    """What a run asks of its batches: fields of the training options that concern them.

    ``losses``: weights of the diversity losses, by name. ``options``: the task's own.
    """

    batch_size: int
    augment: AugmentConfig
    losses: Mapping[str, float] = field(default_factory=dict)
    options: Any = None
    workers: int | None = None
    seed: int = 0
    max_train_images: int | None = None
    max_val_images: int | None = None
    unreadable: Unreadable = "stop"
    progress: bool = True


@dataclass
class Fitting:
    """What training asks of a problem with its data: batches, the loss, and what is done to a batch on the device.

    ``examples``: from a validation batch (images, output of ``infer``, targets) to a picture uint8 [3, H, W] for
    TensorBoard; None where there is nothing to see.
    """

    loaders: Loaders
    criterion: Criterion
    mix: Callable[[Tensor, Any], Mixed] | None = None
    examples: Callable[[Tensor, Any, Any], Tensor] | None = None


class Task(ABC):
    """A kind of problem; an instance is one problem of that kind."""

    name: ClassVar[str]
    help: ClassVar[str]
    columns: ClassVar[tuple[Column, ...]]
    watch: ClassVar[str]
    """Key of the column that is best, shown and compared."""
    options: ClassVar[type[Any]] = NoOptions
    """Options of ``deepvit train`` that only this task has: a dataclass with a docstring a field."""
    infer_options: ClassVar[type[Any]] = NoOptions
    """The same for ``deepvit evaluate`` and ``deepvit predict``: how the network is asked."""
    predict_options: ClassVar[type[Any]] = NoOptions
    """The same for ``deepvit predict`` alone."""
    cells: ClassVar[int] = 8
    """Patches along a side of small images, whose patch size is chosen for the user."""
    foremost: ClassVar[tuple[str, ...]] = ()
    """Metrics of collapse that hurt this task most: a run's report shows them first."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)

    @classmethod
    def defaults(cls, given: Collection[str] = ()) -> dict[str, Any]:
        """Training options with another default for this task, by name; ``given``: names of those that were chosen."""
        return {}

    @classmethod
    def column(cls, key: str | None = None) -> Column:
        """A column by its key; by default the one that is watched."""
        wanted = cls.watch if key is None else key
        return next(column for column in cls.columns if column.key == wanted)

    @classmethod
    def told_figures(cls, figures: Mapping[str, float], prefix: str = "") -> str:
        """``top-1 97.21%, loss 0.1034``: the columns whose ``prefix + key`` is among the figures."""
        found = [(column, figures.get(prefix + column.key)) for column in cls.columns]
        return ", ".join(column.told(value) for column, value in found if value is not None)

    # -- data --------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def open(cls, spec: str, source: DataOptions, options: Any = None) -> Data:
        """The data set of a data string; raises ``UserError`` for one that this task cannot use."""

    @classmethod
    def sources(cls) -> list[dict[str, str]]:
        """The forms of data strings that ``open`` takes, as rows for ``deepvit list data``: data, what, needs, options."""
        return []

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Whether a data string is for this task and no other, for commands that are told no task."""
        return False

    @classmethod
    def open_unchecked(cls, spec: str, source: DataOptions) -> Any:
        """As ``open``, but with what is wrong in it still there, for ``check``."""
        return cls.open(spec, source)

    @classmethod
    def check(cls, data: Any, progress: Callable[[int], None]) -> DataCheck:
        """Read all of a data set once and say what is wrong in it; ``progress`` is called with the images read so far.

        Raises:
            UserError: a task whose data is not checked.
        """
        raise UserError(f"data for {cls.name} is not checked here")

    @classmethod
    @abstractmethod
    def facts_of(cls, data: Any, options: Any) -> dict[str, Any]:
        """What of the data and the options a network is rebuilt from, as JSON."""

    @property
    def classes(self) -> int:
        """Width of the mixing loss's head over patches, for tasks that have classes."""
        return self.width

    def told_facts(self) -> str:
        """The facts in a few words, for the line that announces a run."""
        return self.name

    @property
    def labels(self) -> Sequence[str] | None:
        """Names for whole numbers among the targets, to call images by; None where there are none."""
        return None

    # -- the network -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def width(self) -> int:
        """Outputs of the backbone's classifier; 0 for a backbone without one."""

    def model_args(self, takes: Callable[[str], bool], options: Any) -> dict[str, Any]:
        """Arguments of the backbone that this task needs unless the user gave them; ``takes`` says whether it has one."""
        return {}

    def input(self, input: InputSpec, options: Any) -> InputSpec:
        """What a new network is trained on, from what its backbone is made for."""
        return input

    def network(self, backbone: nn.Module, input: InputSpec) -> nn.Module:
        """The network of the problem: the backbone itself, or with what the task puts behind it."""
        return backbone

    def backbone(self, network: nn.Module) -> nn.Module:
        """The backbone in a network of ``network``: what cures, diversity losses and reports are about."""
        return network

    # -- training ----------------------------------------------------------------------------------

    @abstractmethod
    def fitting(self, data: Any, input: InputSpec, network: nn.Module, settings: Settings) -> Fitting:
        """Batches and loss of a run; raises ``UserError`` for settings that do not go together."""

    # -- measuring and using -----------------------------------------------------------------------

    @abstractmethod
    def validation(self, data: Any, input: InputSpec, settings: Settings) -> Iterable[tuple[Tensor, Any]]:
        """Validation batches of any data set of this kind, with targets as this problem's network knows them.

        Raises:
            UserError: targets that the network does not know.
        """

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter that gives the task's columns."""

    def infer(self, network: nn.Module, images: Tensor, options: Any = None) -> Any:
        """What the meter takes, from images [B, 3, H, W]; ``options``: of ``infer_options``, None for their defaults."""
        return network(images)

    def detail(self, meter: Any, data: Any) -> dict[str, Any]:
        """More than the columns, from a meter that has seen all of ``data``, as JSON: figures by class, for example."""
        return {}

    @classmethod
    def show_detail(cls, result: Mapping[str, Any]) -> None:
        """Print what ``detail`` put into the result of an evaluation."""
        return

    @classmethod
    def draw(cls, result: Mapping[str, Any], stem: Path) -> list[Path]:
        """Draw what ``detail`` put into a result, into files whose names begin with ``stem``."""
        return []

    def pictures(self, data: Any) -> ImageSet:
        """The validation images as a collapse report takes them: with labels, or with no target at all.

        Raises:
            UserError: a stream, which has no random access.
        """
        from deepvit.data import ImageSet

        if not isinstance(data.val, ImageSet):
            raise UserError(
                f"{data.spec} is a stream and cannot be sampled for diagnosis: give a folder or a .tar of images"
            )
        return data.val

    def report_parts(
        self, network: nn.Module, data: Any, input: InputSpec, settings: Settings
    ) -> Sequence[Section]:
        """Sections for the report of a run, before those on collapse: how well the network does its task, and where not."""
        return ()

    @abstractmethod
    def predict(
        self,
        network: nn.Module,
        images: Sequence[Path],
        input: InputSpec,
        options: Any,
        infer: Any,
        out: Path | None,
    ) -> Iterator[dict[str, Any]]:
        """One result an image, as JSON, while they are read; raises ``UserError`` for one that cannot be read.

        ``options`` and ``infer``: of ``predict_options`` and ``infer_options``. ``out``: a JSON file that the caller writes,
        or a folder for files of this task's own.
        """

    def told(self, row: Mapping[str, Any]) -> str:
        """A result of ``predict`` as a line for the terminal."""
        return str(dict(row))
