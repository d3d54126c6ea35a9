"""Runs an experiment: its trials, then its repeats, in turn or side by side; what is done stays done."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import torch

from piggyback.errors import DataError, InputError, PiggybackError
from piggyback.experiments.jobs import finished, run_job
from piggyback.experiments.manifest import Manifest
from piggyback.experiments.plan import Job, choose, repeats, trials
from piggyback.experiments.sources import Sources
from piggyback.reports.cells import CellRow, FailedCell
from piggyback.training import Listener

_FAILURES = (PiggybackError, OSError, RuntimeError)
"""What one job may end in without ending the others: bad data, a full disk, no memory left."""


@dataclass
class Outcome:
    """Where an experiment stands."""

    manifest: Manifest
    rows: list[CellRow] = field(default_factory=list)
    """Of the chosen trials, all seeds."""
    tried: list[CellRow] = field(default_factory=list)
    """Of all trials, with the first seed."""
    chosen: list[Job] = field(default_factory=list)
    """The jobs that ``rows`` come from."""
    repeated: list[Job] = field(default_factory=list)
    """The jobs of the other seeds, finished or not, of cells whose trial is chosen."""
    waiting: list[Job] = field(default_factory=list)
    """Not finished."""
    failed: list[FailedCell] = field(default_factory=list)
    """What ended in an error in this call."""

    @property
    def planned(self) -> list[tuple[str, str, str]]:
        """Backbone, task and label of all cells, in the order of the table."""
        return [
            (backbone.name, task, method.label)
            for backbone in self.manifest.backbones
            for method in self.manifest.methods
            for task in self.manifest.tasks
        ]


Hear = Callable[[str], Listener | None]
Told = Callable[[str], None]


def run(
    manifest: Manifest,
    sources: Sources,
    out: Path,
    *,
    workers: int = 1,
    hear: Hear = lambda title: None,
    told: Told = lambda line: None,
) -> Outcome:
    """Return an experiment's outcome after running all jobs that are not finished below ``out``.

    ``workers`` jobs run side by side, each in a process with a device of its own; where there is no
    device, with its part of the processor's cores. A job that fails is told and left out; a later
    call tries it again. ``hear`` gives a job's listener, when jobs run in turn.

    Raises DataError, before anything is trained, for data or checkpoints that are missing.
    """
    if workers < 1:
        raise InputError(f"workers {workers}: expected 1 or more")
    if lacking := sources.missing(manifest):
        raise DataError("; ".join(lacking.values()))
    failed: list[FailedCell] = []
    for stage in (_first, _other):
        jobs = [job for job in stage(manifest, sources, out) if finished(job, out) is None]
        for job, problem in _ended(jobs, sources, out, workers, hear):
            if problem is not None:
                failed += _failed(job, problem)
            told(f"{job.title}: {problem or 'done'}")
    return standing(manifest, sources, out, failed)


def standing(
    manifest: Manifest, sources: Sources, out: Path, failed: Sequence[FailedCell] = ()
) -> Outcome:
    """Return where an experiment stands below ``out``, without running anything."""
    outcome = Outcome(manifest, failed=list(failed))
    for job in _first(manifest, sources, out):
        rows = finished(job, out)
        outcome.tried += rows or []
        if rows is None:
            outcome.waiting.append(job)
    best = [jobs[trial] for jobs, trial in _chosen(manifest, sources, out)]
    outcome.repeated = _other(manifest, sources, out)
    for job in (*best, *outcome.repeated):
        if (rows := finished(job, out)) is None:
            outcome.waiting.append(job)
        else:
            outcome.rows += rows
            outcome.chosen.append(job)
    return outcome


def _first(manifest: Manifest, sources: Sources, out: Path) -> list[Job]:
    return trials(manifest, {task: sources.prepared(task) for task in manifest.tasks})


def _other(manifest: Manifest, sources: Sources, out: Path) -> list[Job]:
    prepared = {task: sources.prepared(task) for task in manifest.tasks}
    best = [(jobs[0], trial) for jobs, trial in _chosen(manifest, sources, out)]
    return repeats(manifest, prepared, best)


def _chosen(manifest: Manifest, sources: Sources, out: Path) -> Iterator[tuple[list[Job], int]]:
    """The trials of each cell that are all finished, and the chosen one."""
    cells: dict[tuple[str, str, tuple[str, ...]], list[Job]] = {}
    for job in _first(manifest, sources, out):
        cells.setdefault((job.backbone.name, job.method.label, job.tasks), []).append(job)
    for jobs in cells.values():
        rows = {job.trial: finished(job, out) for job in jobs}
        done = {trial: found for trial, found in rows.items() if found}
        if len(done) == len(jobs):
            yield jobs, choose(done, jobs[0].method.max_bits)


def _ended(
    jobs: Sequence[Job], sources: Sources, out: Path, workers: int, hear: Hear
) -> Iterator[tuple[Job, str | None]]:
    """Run jobs; yields each when it has ended, with what went wrong if anything did."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            try:
                run_job(job, sources, out, hear(job.title))
            except _FAILURES as error:
                yield job, _one_line(error)
            else:
                yield job, None
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    places = context.Queue()
    for place in range(workers):
        places.put(place)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_settle, initargs=(places, workers)
    ) as pool:
        running: dict[Future[list[CellRow]], Job] = {
            pool.submit(run_job, job, sources, out): job for job in jobs
        }
        try:
            for future in as_completed(running):
                problem = future.exception()
                if problem is not None and not isinstance(problem, _FAILURES):
                    raise problem
                yield running[future], None if problem is None else _one_line(problem)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _settle(places: multiprocessing.Queue[int], workers: int) -> None:
    """Give this process a device, or its part of the cores, before it touches either."""
    place = places.get()
    if (devices := torch.cuda.device_count()) > 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(place % devices)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _failed(job: Job, problem: str) -> list[FailedCell]:
    return [
        FailedCell(job.backbone.name, task, job.method.label, job.method.method, job.seed, problem)
        for task in job.tasks
    ]


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
