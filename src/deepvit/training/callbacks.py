"""What a run shows and keeps while it trains: progress with time left, metrics.csv, TensorBoard, the best weights."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file

from deepvit.files import atomic_path, write_atomic
from deepvit.runs.folder import read_metrics, still_there
from deepvit.tasks import Column
from deepvit.terminal import say
from deepvit.training.in_force import write_hparams
from deepvit.training.sharding import whole_state
from deepvit.training.trainee import Trainee


class Progressing(Callback):
    """A line an epoch; in a terminal, below them one bar over all steps of the run with the time left."""

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.console = Console(file=sys.stderr)
        self.bar: Progress | None = None
        self.seconds: list[float] = []

    def on_train_start(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Open the bar, at the step where a resumed run stands."""
        if not (self.enabled and trainer.is_global_zero and self.console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=None), TextColumn("{task.percentage:3.0f}%"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console, refresh_per_second=4, transient=True,
        )  # fmt: skip
        total = (trainer.max_epochs or 1) * int(trainer.num_training_batches)
        done = trainer.current_epoch * int(trainer.num_training_batches)
        self.task = self.bar.add_task("train", total=total, completed=done, epoch=self._epoch(trainer))
        self.bar.start()

    def _epoch(self, trainer: lightning.Trainer) -> str:
        return f"{min(trainer.current_epoch + 1, trainer.max_epochs or 1)}/{trainer.max_epochs}"

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(self.task, advance=1, epoch=self._epoch(trainer))

    def show(self, trainer: lightning.Trainer, row: dict[str, Any], watched: Column) -> None:
        """A line for the finished epoch, which stays; without a bar it also says how long the rest will take."""
        if not (self.enabled and trainer.is_global_zero):
            return
        self.seconds.append(row["seconds"] + row.get("val_seconds", 0.0))
        state = f"loss {row['train/loss']:.3f}  val {watched.told(row[f'val/{watched.key}'])}"
        line = f"epoch {row['epoch']}/{trainer.max_epochs}  {state}  {row['seconds']:.1f} s"
        if self.bar is not None:
            say(line, self.bar.console)  # the bar moves down
            return
        left = sum(self.seconds[-5:]) / len(self.seconds[-5:]) * ((trainer.max_epochs or 1) - row["epoch"])
        print(f"{line}  left {clock(left)}", file=sys.stderr, flush=True)

    def teardown(self, trainer: lightning.Trainer, module: Any, stage: str) -> None:
        """Close the bar, however training ended."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class RunLog(Callback):
    """``metrics.csv`` (one row an epoch) and TensorBoard (also every ``log_every`` steps).

    Lightning's CSV logger starts its file anew when a run is resumed; this one keeps the rows of the
    finished epochs and drops those of an epoch that is trained again.
    """

    def __init__(self, out: Path, log_every: int, progress: Progressing) -> None:
        self.path = out / "metrics.csv"
        self.log_every = log_every
        self.progress = progress
        self.rows: list[dict[str, Any]] = []
        self.in_force: dict[str, Any] = {}
        self._train_seconds = self._val_seconds = 0.0
        self._terms: dict[str, list[float]] = {}
        self._start = time.perf_counter()
        self._elapsed = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What the epoch that is under way has seen so far."""
        return {"terms": self._terms, "elapsed": time.perf_counter() - self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on inside an epoch."""
        self._terms, self._elapsed = state["terms"], state["elapsed"]

    def on_train_start(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Take over the rows of the epochs that are done."""
        self.read(trainer.current_epoch)
        if trainer.is_global_zero and self.in_force:
            options = {**module.config.options(), "in_force": self.in_force}
            write_hparams(trainer, options, f"val/{module.problem.watch}")
        self._start = time.perf_counter() - self._elapsed

    def read(self, epochs: int) -> None:
        """Read the rows of the first ``epochs`` epochs from the file, where there is one."""
        if epochs:
            self.rows = [row for row in read_metrics(self.path.parent) if int(row["epoch"]) <= epochs]

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Start the clock of the epoch."""
        self._start = time.perf_counter()
        self._train_seconds = self._val_seconds = 0.0
        self._terms = {}

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Trainee, *_: Any) -> None:  # type: ignore[override]
        """Read the losses every ``log_every`` steps."""
        if trainer.global_step and trainer.global_step % self.log_every == 0:
            self._read(trainer, module)

    def _read(self, trainer: lightning.Trainer, module: Trainee) -> None:
        module.report_bad()
        sums, count = module.take_train_terms()
        for name, value in sums.items():
            self._terms.setdefault(name, [0.0, 0.0])
            self._terms[name][0] += value
            self._terms[name][1] += count
        if sums:
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._log(
                trainer,
                {f"train/{k}": v / count for k, v in sums.items()} | {"lr": rate},
                trainer.global_step,
            )

    def _log(self, trainer: lightning.Trainer, values: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(values, step)

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """What is done inside is no time of training."""
        started = time.perf_counter()
        yield
        self._start += time.perf_counter() - started

    def on_validation_start(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Stop the clock of training while validation runs."""
        if not trainer.sanity_checking:
            self._train_seconds = time.perf_counter() - self._start
            self._val_start = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Note how long validation took."""
        if not trainer.sanity_checking:
            self._val_seconds = time.perf_counter() - self._val_start

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Write the row of the epoch (the file whole, by renaming)."""
        self._read(trainer, module)
        images = int(trainer.num_training_batches) * module.images_per_step // module.config.optim.accumulate
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            **{f"train/{name}": total / count for name, (total, count) in self._terms.items()},
            **module.val_results,
            "seconds": self._train_seconds,
            "val_seconds": self._val_seconds,
            "images_per_second": images / max(self._train_seconds, 1e-9),
        }
        if not trainer.is_global_zero:
            return
        still_there(self.path.parent)
        self._log(trainer, {k: v for k, v in row.items() if k != "step"}, trainer.global_step)
        self.rows.append(row)
        names = list(dict.fromkeys(name for r in self.rows for name in r))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomic(self.path, text.getvalue())
        self.progress.show(trainer, row, module.problem.column())


class BestWeights(Callback):
    """Keeps the weights of the epoch that was best in validation (``--keep best``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best = float("-inf")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Trainee) -> None:  # type: ignore[override]
        """Save when the epoch is better than all before it."""
        watched = module.problem.column()
        value = module.val_results[f"val/{watched.key}"]
        value = value if watched.better == "higher" else -value
        if value > self.best:
            self.best = value
            state = whole_state(module.evaluated.state_dict(), keep=trainer.is_global_zero)
            if trainer.is_global_zero:
                with atomic_path(self.path) as temporary:
                    save_file({k: v.contiguous().cpu() for k, v in state.items()}, temporary)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far goes into the checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the best value back on resuming."""
        self.best = state["best"]
