"""Where a study's runs are done: processes of this machine, or jobs of submitit (here, or in a SLURM queue).

An executor is a file's worth of ``submit``; a study asks nothing else of it. A job that was lost (killed, preempted, its
machine gone) says so by ``JobLost``, and the study submits its run again, which goes on from where it was saved.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

import torch

from deepvit.errors import UserError


class JobLost(Exception):  # noqa: N818  (what has happened, not what is wrong)
    """A job ended without a result of its own: it was killed, or its machine went away."""


class Job(Protocol):
    """Something that was submitted."""

    def done(self) -> bool:
        """Whether it has ended, in any way."""

    def result(self) -> Any:
        """What its function returned, or raised; raises ``JobLost`` if the job was lost."""


class Executor(Protocol):
    """Does calls somewhere else."""

    limit: int | None
    """How many jobs may be there at a time; None for any number."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Job:
        """Have ``function(*args)`` called; both must be picklable."""

    def close(self) -> None:
        """Cancel what is not done."""


class PoolJob:
    """A call in one of our processes."""

    def __init__(self, future: Future[Any]) -> None:
        self.future = future

    def done(self) -> bool:
        """Whether it has ended."""
        return self.future.done()

    def result(self) -> Any:
        """Its result."""
        try:
            return self.future.result()
        except (BrokenProcessPool, SystemExit) as error:
            raise JobLost(str(error) or "its process was killed") from None


class Processes:
    """``jobs`` processes of this machine, each with its share of the cores; they end with this one, however it ends."""

    def __init__(self, jobs: int) -> None:
        self.limit: int | None = jobs
        self.pool: ProcessPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *args: Any) -> Job:
        """Into the pool; one that lost a process is replaced."""
        assert self.limit is not None
        for _ in range(2):
            if self.pool is None:
                threads = max(1, torch.get_num_threads() // self.limit)
                context = multiprocessing.get_context("spawn")
                self.pool = ProcessPoolExecutor(self.limit, context, start_worker, (threads,))
            try:
                return PoolJob(self.pool.submit(function, *args))
            except BrokenProcessPool:
                self.close()
        raise JobLost("no process can be started")

    def close(self) -> None:
        """Forget what waits, and wait for what runs."""
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def start_worker(threads: int) -> None:
    """Give a process of several its share of the cores, keep Lightning's notices off the screen, end with the parent."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", module=r"lightning(\..*)?$")
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def look() -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


class Again:
    """A function that submitit may call again from the start, after a time limit or preemption: a run goes on by itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        """As the function."""
        return self.function(*args)

    def checkpoint(self, *args: Any) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


class Queue:
    """Which jobs wait or run in SLURM, asked for all at once every few seconds.

    submitit asks ``sacct``, which knows nothing on a cluster without accounting, and where it does, every ten minutes.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.every = every
        self.asked = time.monotonic()
        self.absent: Counter[str] = Counter()

    def has_lost(self, job: str, mine: Iterable[str]) -> bool:
        """Whether a job of ``mine`` was not in the queue, twice in turn."""
        if time.monotonic() - self.asked >= self.every:
            self.asked = time.monotonic()
            done = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True)
            if done.returncode == 0:  # a controller that does not answer says nothing of the jobs
                there = set(done.stdout.split())
                self.absent = Counter({one: self.absent[one] + 1 for one in mine if one not in there})
        return self.absent[job] > 1


class SubmititJob:
    """A job of submitit; ``lost`` says whether the queue has forgotten it."""

    def __init__(self, job: Any, lost: Callable[[], bool]) -> None:
        self.job, self.lost = job, lost

    def done(self) -> bool:
        """Whether it has ended."""
        return bool(self.job.done()) or self.lost()

    def result(self) -> Any:
        """Its result; the error of its function is raised as it was."""
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not self.job.done():
            raise JobLost("it is not in the queue any more, and left no result")
        try:
            outcome, result = self.job._get_outcome_and_result()
        except (UncompletedJobError, FailedJobError) as error:
            raise JobLost((str(error).splitlines() or ["it left no result"])[0]) from None
        if outcome == "error":
            raise UserError(f"job {self.job.job_id} failed: {(result.strip().splitlines() or ['?'])[-1]}")
        return result


class Submitit:
    """submitit's executor: ``local`` (processes of this machine) or ``slurm``.

    Args:
        cluster: "local" or "slurm".
        folder: where submitit keeps its files.
        limit: jobs at a time.
        options: submitit's parameters, as ``timeout_min``, ``gpus_per_node``, ``slurm_partition``.

    Raises:
        UserError: submitit is not installed, there is no such cluster here, or an option that submitit does not know.
    """

    def __init__(self, cluster: str, folder: Path, limit: int | None, options: Mapping[str, Any]) -> None:
        try:
            import submitit
        except ImportError:
            raise UserError(f"--executor {cluster} needs submitit: pip install 'deepvit[slurm]'") from None
        self.limit = limit
        self.jobs: list[Any] = []
        self.queue = Queue() if cluster == "slurm" else None
        logging.getLogger("submitit").setLevel(logging.ERROR)  # its warnings are of sacct
        try:
            self.executor = submitit.AutoExecutor(folder, cluster=cluster)
            self.executor.update_parameters(name="deepvit", **{"timeout_min": 24 * 60, **options})
        except (NameError, RuntimeError, TypeError, ValueError, AssertionError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"--executor {cluster}: {said}") from None

    def submit(self, function: Callable[..., Any], *args: Any) -> Job:
        """Into the queue."""
        try:
            job = self.executor.submit(Again(function), *args)
        except Exception as error:  # what sbatch says comes as submitit's own types
            raise UserError(f"the job was not accepted: {(str(error).splitlines() or ['?'])[-1]}") from None
        self.jobs.append(job)

        def lost() -> bool:
            mine = [str(one.job_id) for one in self.jobs]
            return self.queue is not None and self.queue.has_lost(str(job.job_id), mine)

        return SubmititJob(job, lost)

    def close(self) -> None:
        """Cancel what is not done."""
        for job in self.jobs:
            if not job.done():
                job.cancel(check=False)


EXECUTORS = ("processes", "local", "slurm")


def make_executor(name: str, jobs: int | None, folder: Path, options: Mapping[str, Any]) -> Executor | None:
    """The executor of a name; None where runs are done in this process, one after the other.

    Raises:
        UserError: it cannot be used here, or options for one that has none.
    """
    if name != "processes":
        return Submitit(name, folder, jobs or (1 if name == "local" else None), options)
    if options:
        raise UserError("--executor_args go with --executor local or slurm; processes have none")
    return None if (jobs or 1) == 1 else Processes(jobs or 1)
