"""Progress of runs in other processes, read off the epochs that their folders hold."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deepvit.experiments.grid import Cell, StudyConfig, config_of
from deepvit.training.callbacks import clock

EVERY = 30.0  # seconds between two lines where there is no terminal


class EpochProgress:
    """A bar over all epochs of a study with the time left; without a terminal, a line every half minute."""

    def __init__(self, config: StudyConfig, grid: list[Cell], until: int | None = None) -> None:
        self.folders = [Path(str(config_of(config, cell).run.out)) for cell in grid]
        self.each = until or config.train.total_epochs
        self.total = len(grid) * self.each
        self.enabled = config.train.run.progress
        self.runs = len(grid)
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if self.enabled and console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=None), TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"), console=console, transient=True,
            )  # fmt: skip
        self.started = self.said = time.monotonic()
        self.before = self.done()

    def __enter__(self) -> EpochProgress:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("", total=self.total, left="?")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def done(self) -> int:
        """Epochs that all runs have finished: a run that has ended counts whole, also one that diverged."""
        return sum(
            self.each
            if (folder / "run.json").exists() or (folder / "diverged.txt").exists()
            else min(epochs_of(folder), self.each)
            for folder in self.folders
        )

    def update(self) -> None:
        """Look at the folders and show where the study stands."""
        if not self.enabled:
            return
        done, seconds = self.done(), time.monotonic() - self.started
        fresh = done - self.before
        left = clock(seconds / fresh * (self.total - done)) if fresh else "?"
        text = f"{done} of {self.total} epochs of {self.runs} runs"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, description=text, left=left)
        elif time.monotonic() - self.said > EVERY:
            self.said = time.monotonic()
            print(f"{text}, left {left}", file=sys.stderr, flush=True)


def epochs_of(folder: Path) -> int:
    """Finished epochs of a run: the rows of its metrics.csv, which is replaced whole after each."""
    try:
        with (folder / "metrics.csv").open() as file:
            return max(0, sum(1 for _ in file) - 1)
    except FileNotFoundError:
        return 0
