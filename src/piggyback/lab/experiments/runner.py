"""Runs an experiment: its trials, then its repeats, in turn or side by side; what is done stays done."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from piggyback.errors import DataError, InputError, PiggybackError
from piggyback.lab.experiments.jobs import finished, run_job
from piggyback.lab.experiments.manifest import Manifest
from piggyback.lab.experiments.plan import Job, choose, repeats, trials
from piggyback.lab.experiments.sources import Sources
from piggyback.lab.experiments.workers import side_by_side
from piggyback.lab.tables.cells import CellRow, FailedCell
from piggyback.train import Listener

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
        jobs = {job.folder: job for job in stage(manifest, sources, out)}  # once, if lines share it
        left = [job for job in jobs.values() if finished(job, out) is None]
        with closing(_ended(left, sources, out, workers, hear)) as ended:
            for job, problem in ended:
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
    best = list(_chosen(manifest, sources, out))
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
    best = [(job, job.trial) for job in _chosen(manifest, sources, out)]
    return repeats(manifest, prepared, best)


def _chosen(manifest: Manifest, sources: Sources, out: Path) -> Iterator[Job]:
    """The job of the chosen trial, of each cell whose trials are all finished."""
    choices: dict[tuple[str, ...], dict[int, list[Job]]] = {}
    for job in _first(manifest, sources, out):
        together = () if job.method.choose == "all" else job.tasks
        group = choices.setdefault((job.backbone.name, job.method.label, *together), {})
        group.setdefault(job.trial, []).append(job)
    for group in choices.values():
        rows = {trial: [finished(job, out) for job in jobs] for trial, jobs in group.items()}
        if all(None not in found for found in rows.values()):
            flat = {trial: [r for f in found for r in f or ()] for trial, found in rows.items()}
            yield from group[choose(flat, group[0][0].method.max_bits)]


def _ended(
    jobs: Sequence[Job], sources: Sources, out: Path, workers: int, hear: Hear
) -> Generator[tuple[Job, str | None], None, None]:
    """Run jobs; yields each when it has ended, with what went wrong if anything did."""
    if workers > 1 and len(jobs) > 1:
        yield from side_by_side(partial(_attempt, sources=sources, out=out), jobs, workers)
    else:
        for job in jobs:
            yield job, _attempt(job, sources, out, hear(job.title))


def _attempt(job: Job, sources: Sources, out: Path, listener: Listener | None = None) -> str | None:
    """Run a job; returns what went wrong, in one line."""
    try:
        run_job(job, sources, out, listener)
    except _FAILURES as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def _failed(job: Job, problem: str) -> list[FailedCell]:
    return [
        FailedCell(job.backbone.name, task, job.method.label, job.method.method, job.seed, problem)
        for task in job.tasks
    ]
