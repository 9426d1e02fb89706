"""``deepvit study``: depths × methods × seeds, one run after the other, resumable, ending in table, figure and report."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deepvit import recipes, tasks
from deepvit.errors import UserError
from deepvit.experiments.executors import Job, JobLost, make_executor
from deepvit.experiments.figure import draw_study
from deepvit.experiments.grid import Cell, StudyConfig, cells, config_of
from deepvit.experiments.halving import Halving, halved, halving_in_words
from deepvit.experiments.measures import write_measures
from deepvit.experiments.profiles import write_profiles
from deepvit.experiments.progress import EpochProgress, epochs_of
from deepvit.experiments.rehearsal import rehearse
from deepvit.experiments.rows import (
    columns_of,
    curve_names,
    curves_of,
    markdown,
    measurements,
    row_of,
    spread,
    written,
)
from deepvit.files import write_atomic, write_json
from deepvit.parsing import read_yaml
from deepvit.provenance import hardware, versions
from deepvit.report import compare_reports
from deepvit.runs import read_run
from deepvit.runs.folder import read_metrics
from deepvit.training.callbacks import clock
from deepvit.training.config import FREE_ON_RESUME
from deepvit.training.guards import DivergedError
from deepvit.training.run import train
from deepvit.training.saving import WHOLE

# Growing these keeps the runs that are done.
_EXTENDED = (
    "depths",
    "methods",
    "seeds",
    "out",
    "overwrite",
    "title",
    "jobs",
    "executor",
    "executor_args",
    "halving",
)


def study(recipe: str, config: StudyConfig | None = None, **options: Any) -> dict[str, Any]:
    """Run a study and write ``study.json``, ``table.md``, ``table.csv``, ``figure.png``, ``profiles.json``, ``report.html``;
    of at least five configurations also ``measures.csv`` and ``measures.md``: which measures go with the result.

    Runs that are done are skipped, one that was interrupted is resumed; a run whose loss diverges is a result
    too and is recorded as such.

    Args:
        recipe: name of a shipped recipe (``deepvit list recipes``) or a YAML file.
        config: all options at once, instead of the recipe's file.
        **options: fields of :class:`StudyConfig`, replacing the recipe's; ``train`` holds fields of ``TrainConfig``.

    Returns:
        what ``study.json`` holds: every run, and mean and spread by method and depth.

    Raises:
        UserError: a mistake in the options, or a folder that holds a study with other options.
    """
    if config is None:
        config = StudyConfig.from_yaml(recipes.find(recipe), **options)
    out = Path(config.out)
    prepare(config, out)
    grid = cells(config)
    done: dict[Cell, dict[str, Any]] = {}
    started, trained = time.time(), 0
    result: dict[str, Any] = {}
    halving: Halving | None = None
    try:
        if config.halving:
            halving = halved(config, lambda chosen, until: run_cells(config, chosen, until))
            grid = halving.last
        for number, (cell, entry, fresh) in enumerate(run_cells(config, grid)):
            done[cell] = entry
            trained += fresh
            # After every run: an interrupted study leaves the table of what it has.
            result = summarise(config, recipe, done, time.time() - started)
            write_tables(result, out)
            if config.train.run.progress and trained and number + 1 < len(grid):
                left = clock((time.time() - started) / trained * (len(grid) - number - 1))
                print(
                    f"{number + 1} of {len(grid)} runs done, about {left} left", file=sys.stderr, flush=True
                )
    except (KeyboardInterrupt, SystemExit):
        # Its own file has every option as it was given, and nothing that would start anew.
        file = shlex.quote(str(out / "study.yaml"))
        print(f"the study goes on by: deepvit study {file}", file=sys.stderr, flush=True)
        raise
    if halving is not None:
        result["halving"] = halving.account([*done.values()])
        write_atomic(out / "halving.md", halving_in_words(result["halving"]))
        write_tables(result, out)
    draw_study(result, out)
    write_profiles(result, out)
    write_report(config, done, out, result)
    write_measures(result["runs"], out, tasks.find(result["task"]).watch, config.title or result["recipe"])
    return result


def run_cells(
    config: StudyConfig, grid: list[Cell], until: int | None = None
) -> Iterator[tuple[Cell, dict[str, Any], bool]]:
    """Do the runs, ``config.jobs`` at a time, and give each as it ends: the cell, its entry, whether it was trained now.

    ``until``: only to this epoch; they go on from there when they are asked for again.
    """
    executor = make_executor(config.executor, config.jobs, Path(config.out) / ".jobs", config.executor_args)
    if executor is None:
        for number, cell in enumerate(grid):
            if config.train.run.progress:
                print(f"run {number + 1} of {len(grid)}: {cell.label}", file=sys.stderr, flush=True)
            yield cell, *run_cell(config, cell, until)
        return
    # Several small networks at once use the cores better than one after the other: their steps are too short to share.
    quiet = config.with_train(progress=False)
    queue, waiting, lost = list(grid), dict[Cell, Job](), Counter[Cell]()
    try:
        with EpochProgress(config, grid, until) as progress:
            while queue or waiting:
                while queue and (executor.limit is None or len(waiting) < executor.limit):
                    waiting[queue[0]] = executor.submit(run_cell, quiet, queue[0], until)
                    queue.pop(0)
                ended = [cell for cell, job in waiting.items() if job.done()]
                for cell in ended:
                    try:
                        entry = waiting.pop(cell).result()
                    except JobLost as error:
                        lost[cell] += 1
                        if lost[cell] > RETRIES:
                            raise UserError(
                                f"{cell.label} was lost {lost[cell]} times ({error}): the study goes on where it is with "
                                "the same command"
                            ) from None
                        print(
                            f"{cell.label} was lost ({error}); submitted again", file=sys.stderr, flush=True
                        )
                        queue.append(cell)
                        continue
                    yield cell, *entry
                progress.update()
                if not ended:
                    time.sleep(0.5)
    finally:
        executor.close()


RETRIES = 3
"""How often a run that was lost is submitted again."""


def prepare(config: StudyConfig, out: Path) -> None:
    """Check every run's options, its network and the data, and the folder; then write ``study.yaml``.

    Raises:
        UserError: a run that could not be trained; the folder holds a study with other options, or something else.
    """
    plain = config.plain()
    path = out / "study.yaml"
    # A recipe that failed before its first run left no work that could be lost.
    if path.exists() and not config.overwrite and any((out / "runs").glob("*")):
        stored = StudyConfig(**read_yaml(path, "study")).plain()
        for name, value in plain.items():
            before: Any = stored.get(name)
            if name in _EXTENDED or before == value:
                continue
            if name == "train":  # what may change when a run goes on may change in a study
                keys = [k for k in value if k not in FREE_ON_RESUME and value[k] != before.get(k)]
                if not keys:
                    continue
                name, before, value = f"train.{keys[0]}", before.get(keys[0]), value[keys[0]]
            raise UserError(
                f"{out} holds a study with another {name} ({before!r}, not {value!r}): give another --out, or --overwrite"
            )
    elif out.is_dir() and any(out.iterdir()) and not path.exists():
        raise UserError(f"{out} holds something that is not a study: give another folder with --out")
    rehearse(config, None if config.overwrite else out / "runs")
    if config.overwrite:
        shutil.rmtree(out / "runs", ignore_errors=True)
    write_atomic(path, yaml.safe_dump({**plain, "overwrite": False}, sort_keys=False, allow_unicode=True))


def run_cell(config: StudyConfig, cell: Cell, until: int | None = None) -> tuple[dict[str, Any], bool]:
    """Do one run, or read it if it is done; returns its entry and whether it was trained now.

    With ``until`` the run stops after this epoch, and the entry holds what its task watches there, and nothing else.
    """
    options = config_of(config, cell)
    folder = Path(str(options.run.out))
    entry: dict[str, Any] = {
        "method": cell.method,
        "depth": cell.depth,
        "seed": cell.seed,
        "run": folder.name,
    }
    if (folder / "diverged.txt").exists():
        return {**entry, "diverged": (folder / "diverged.txt").read_text(encoding="utf-8")}, False
    fresh = not (folder / "run.json").exists() and not (until and epochs_of(folder) >= until)
    if fresh:
        part = WHOLE.set(False)
        try:
            train(options.with_options(resume=(folder / "config.yaml").exists(), until=until))
        except DivergedError as error:
            write_atomic(folder / "diverged.txt", str(error))
            return {**entry, "diverged": str(error)}, True
        finally:
            WHOLE.reset(part)
    if until is not None:
        watch = tasks.find(config.train.task).watch
        return {**entry, watch: float(read_metrics(folder)[until - 1][f"val/{watch}"])}, fresh
    run = read_run(folder)
    return {**entry, **row_of(run), "epochs": run.result["epochs"]}, fresh


def summarise(
    config: StudyConfig, recipe: str, done: dict[Cell, dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """Every run, and mean and spread over seeds by method and depth."""
    groups = []
    depths: list[int | None] = [*config.depths] if config.depths else [None]
    for depth in depths:
        for method in config.methods:
            entries = [e for c, e in done.items() if c.method == method and c.depth == depth]
            if not entries:
                continue
            trained = [e for e in entries if "diverged" not in e]
            group: dict[str, Any] = {
                "method": method,
                "depth": depth,
                "diverged": len(entries) - len(trained),
            }
            for column in columns_of(config.train.task):
                values = [e[column] for e in trained if e[column] is not None]
                group[column] = spread(values) if values else None
            groups.append(group)
    return {
        "format": "deepvit-study/1",
        "recipe": recipe_name(recipe, Path(config.out)),
        "title": config.title,
        "task": config.train.task,
        "data": config.train.data.spec,
        "epochs": config.train.optim.epochs,
        "seeds": config.seeds,
        "seconds": seconds,
        "versions": versions(),
        "hardware": hardware(),
        "groups": groups,
        "runs": [done[cell] for cell in cells(config) if cell in done],
        "jobs": config.jobs or 1,
        "out": str(config.out),
    }


def recipe_name(recipe: str, out: Path) -> str:
    """A recipe's name, or its file's; a study that goes on by its own file keeps the name that it began with."""
    file = Path(recipe)
    if file.suffix != ".yaml":
        return recipe
    before = out / "study.json"
    if file.name == "study.yaml" and file.parent.resolve() == out.resolve():
        return (
            str(json.loads(before.read_text(encoding="utf-8"))["recipe"])
            if before.exists()
            else out.resolve().name
        )
    return file.stem


def table_of(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the study's table; no value of one run gets a spread."""
    depths = len({g["depth"] for g in result["groups"]}) > 1
    columns = columns_of(result["task"])
    headings = ["method", *(["blocks"] if depths else []), *(heading for heading, _ in columns.values())]
    rows = []
    for group in result["groups"]:
        row = [group["method"], *([str(group["depth"])] if depths else [])]
        if group["diverged"]:
            row[0] += f" ({group['diverged']} diverged)"
        for column, (_, digits) in columns.items():
            cell = group[column]
            several = cell is not None and cell["runs"] > 1 and column != "parameters"
            row.append(written(cell and cell["mean"], digits, cell["std"] if several else None))
        rows.append(row)
    return headings, rows


def write_tables(result: dict[str, Any], out: Path) -> None:
    """``study.json``, ``table.md`` and ``table.csv`` (one line a run)."""
    # Where it lies is no part of the record, which people copy and publish.
    write_json(out / "study.json", {name: value for name, value in result.items() if name != "out"})
    headings, rows = table_of(result)
    write_atomic(out / "table.md", markdown(headings, rows))
    text = io.StringIO(newline="")
    names = ["method", "depth", "seed", *columns_of(result["task"]), "diverged"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(result["runs"])
    write_atomic(out / "table.csv", text.getvalue())


def write_report(
    config: StudyConfig, done: dict[Cell, dict[str, Any]], out: Path, result: dict[str, Any]
) -> None:
    """One HTML with the first seed's run of every method and depth side by side, under the table over all seeds."""
    chosen: dict[str, Path] = {}
    for cell, entry in done.items():
        if cell.seed == config.seeds[0] and "diverged" not in entry:
            name = (
                cell.method
                if cell.depth is None or len(config.depths) < 2
                else f"{cell.method}, {cell.depth} blocks"
            )
            chosen[name] = out / "runs" / cell.label
    found = {name: m for name, path in chosen.items() if (m := measurements(path)) is not None}
    if not found:
        return
    for name, one in found.items():
        one.name = name
    headings, rows = table_of(result)
    compare_reports(
        list(found.values()),
        curves={name: curves_of(path) for name, path in chosen.items()},
        table=[dict(zip(headings, row, strict=True)) for row in rows],
        out=out / "report.html",
        title=config.title or f"Study {result['recipe']}",
        curve_names=curve_names(result["task"]),
    )
