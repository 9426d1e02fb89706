"""The run folder: who may write into it, and the record of a run (``run.json``)."""

from __future__ import annotations

import csv
import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepvit.data import DataOptions
from deepvit.errors import UserError
from deepvit.files import read_json, read_text, unfinished
from deepvit.options import build
from deepvit.parsing import read_yaml
from deepvit.tasks import Task

UNDERWAY = "underway"
"""Folder of what was measured while the run trained: ``underway/SHARE/collapse.json``."""
_OURS = {
    "config.yaml", "run.json", "metrics.csv", "checkpoints", "model.safetensors", "model.json", "tensorboard",
    "collapse.json", "report.html", "figures", "nonfinite", UNDERWAY, "exported", "wandb",
}  # fmt: skip


@dataclass
class Run:
    """A finished run.

    Attributes:
        path: the run folder.
        info: what ``run.json`` holds.
    """

    path: Path
    info: dict[str, Any]

    @property
    def result(self) -> dict[str, Any]:
        """The final numbers: the task's columns as ``val/KEY``, ``best/KEY`` of the watched one, seconds, parameters."""
        return dict(self.info["result"])

    @property
    def task(self) -> str:
        """Name of the task; runs written before there were several are classifications."""
        return str(self.info.get("task", "classification"))


def check_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that may not be written; nothing is changed.

    Raises:
        UserError: it holds a run and neither flag is given; it holds other things; there is nothing to resume.
    """
    if resume:
        if not (out / "config.yaml").exists():
            raise UserError(f"there is no run to resume in {out} (no config.yaml): start it without --resume")
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; a folder is wanted")
    present = (
        {entry.name for entry in out.iterdir() if not entry.name.startswith(".")} if out.is_dir() else set()
    )
    if not present:
        return
    if present - _OURS:
        raise UserError(
            f"{out} holds something that is not a run ({sorted(present - _OURS)[0]}): give another folder with --out"
        )
    if not overwrite:
        raise UserError(f"{out} holds a run already: go on with it by --resume, or replace it by --overwrite")


def clear_folder(out: Path) -> None:
    """Remove what a former run left in ``out`` (only names that a run writes)."""
    for name in _OURS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def still_there(out: Path) -> None:
    """Refuse to write on into a run folder that is gone: what came to lie in its place would be half a run.

    Raises:
        UserError: its disk is away, or somebody has removed it.
    """
    if not (out / "config.yaml").exists():
        raise UserError(
            f"the run folder {out} is gone (removed, or its disk is away): nothing more is written"
        )


_PARTS = {
    "last.ckpt",
    "previous.ckpt",
    "digests.json",
    "best.safetensors",
    "weights.safetensors",
    "record.json",
}


def sweep(out: Path) -> None:
    """Remove what writes that were killed have left: with every preemption it could be a checkpoint that is half there."""
    for folder in (out, out / "checkpoints", out / "nonfinite"):
        for path in unfinished(folder, _OURS | _PARTS):
            path.unlink(missing_ok=True)


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv``, one an epoch; none where there is no such file.

    Raises:
        UserError: it cannot be read or is damaged.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path))))
        for row in rows:
            int(row["epoch"])
            # A row that is cut short or too long has None among its values or keys.
            [float(value) for name, value in row.items() if name is not None and value]
            if None in row or None in row.values():
                raise ValueError
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(
            f"{path} is damaged: it is not the table of a run; start anew with --overwrite"
        ) from None
    return rows


def read_run(path: str | Path) -> Run:
    """Read a finished run.

    Raises:
        UserError: no run folder, a run that has not ended, or a damaged ``run.json``.
    """
    folder = Path(path)
    file = folder / "run.json"
    if not folder.is_dir():
        raise UserError(f"there is no run folder {folder}")
    if not file.exists():
        if (folder / "config.yaml").exists():
            raise UserError(
                f"the run in {folder} has not ended: go on with it by deepvit train --resume --out {folder}"
            )
        raise UserError(f"{folder} is not a run folder (no run.json)")
    info = read_json(file, "the record of a run")
    if not isinstance(info.get("result"), dict):
        raise UserError(f"{file} is damaged: it is not the record of a run")
    return Run(folder, info)


def stored_options(run: str | Path) -> dict[str, Any]:
    """The options of a run by name, as its ``config.yaml`` has them.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(run) / "config.yaml"
    if not path.exists():
        raise UserError(f"{run} does not say on what it was trained (no config.yaml): give --data")
    return {"data": "digits", **read_yaml(path, "training options")}


def same_data(one: str, other: str) -> bool:
    """Whether two data strings name the same data: equal, or two ways to one place on disk."""
    return one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other))


def open_stored(
    problem: Task, options: dict[str, Any], data: str | None = None, more: dict[str, Any] | None = None
) -> Any:
    """Data opened as a run's task does: the run's own, or other data.

    Args:
        problem: the task.
        options: those of ``stored_options``.
        data: another data string. Where it names the run's own data, the run's options of the source hold as well: the
            same folder under another split, or other ids of its masks, would be measured wrong without a word.
        more: options of the data source by name, over those of the run.
    """
    spec = str(options["data"]) if data is None else data
    stored = (options.get("data_args") or {}) if same_data(spec, str(options["data"])) else {}
    return problem.open(spec, DataOptions.of(**{**stored, **(more or {})}), build(problem.options, options))
