"""The one schema of training options: command line, YAML and Python call are all read from the dataclasses of ``groups``.

They are nested by what belongs together; who types an option sees one flat list (``deepvit.options``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deepvit import tasks
from deepvit.errors import UserError
from deepvit.options import Option, build, flat, group, options_of
from deepvit.parsing import checked, json_ready, read_yaml
from deepvit.training.groups import (
    CureOptions,
    ImageOptions,
    LossOptions,
    ModelOptions,
    OptimOptions,
    ResultOptions,
    RunOptions,
)

HINT = "; see deepvit train --help"


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
        """The options of a run that goes on: ``stored``, with everything of ``RunOptions`` as it is asked for now.

        ``chosen`` as in ``check_continues``.
        """
        mine = self.options()
        changed = {name: mine[name] for name in (*FREE_ON_RESUME, *({LENGTHENS} & set(chosen)))}
        return stored.with_options(**{**changed, "out": out, "resume": True})


FREE_ON_RESUME = frozenset(option.name for option in options_of(RunOptions))
"""Names of the options that may differ between a run and its continuation: those of ``RunOptions``, and no others."""
LENGTHENS = "epochs"
"""The option that a continuation may raise, also of a run that has ended: from the present step on the learning rate then
follows the schedule of the new number of epochs, so the weights are not those of a run of that length from its start."""
