"""An experiment below a folder: planned once, trained where it is not finished, each result read once.

trials, then repeats:    train what has no cell.json     in turn, or side by side
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from piggyback.errors import DataError, InputError, PiggybackError
from piggyback.lab.experiments.manifest import Manifest
from piggyback.lab.experiments.plan import Job, choose, repeats, trials
from piggyback.lab.experiments.sources import Sources
from piggyback.lab.experiments.workers import side_by_side
from piggyback.lab.packnet import train_packnet
from piggyback.lab.tables.rows import PACKNET, Failure, Row, row_of
from piggyback.network.backbone import Backbone
from piggyback.strict_json import strict_json
from piggyback.taskfile.disk import write_file
from piggyback.train import ImageData, Listener, Recipe, TrainResult, train

CELL = "cell.json"
"""The file in a job's folder that says it is finished, and with what."""
_FAILURES = (PiggybackError, OSError, RuntimeError)
"""What one job may end in without ending the others: bad data, a full disk, no memory left."""


class Experiment:
    """A manifest's jobs below ``out``, and what is known of each.

    Lines of the table that ask for the same training share its job's folder, and so its result.
    Raises ManifestError for recipes that cannot be.
    """

    def __init__(self, manifest: Manifest, sources: Sources, out: Path) -> None:
        self.manifest = manifest
        self.sources = sources
        self.out = out
        self.trials = trials(manifest, {task: sources.prepared(task) for task in manifest.tasks})
        """The jobs of the first seed."""
        self.failed: list[Failure] = []
        """What ended in an error in this process."""
        self._rows: dict[Path, list[Row] | None] = {}

    def run(
        self,
        *,
        workers: int = 1,
        listener: Callable[[str], Listener | None] = lambda title: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Train all jobs that are not finished.

        ``workers`` jobs run side by side, each in a process with a device of its own; where there is
        no device, with its part of the processor's cores. A job that fails is logged and left out; a
        later run tries it again. ``listener`` gives a job's listener, when jobs run in turn.

        Raises DataError, before anything is trained, for data or checkpoints that are missing.
        """
        if workers < 1:
            raise InputError(f"workers {workers}: expected 1 or more")
        if lacking := self.sources.missing(self.manifest):
            raise DataError("; ".join(lacking.values()))
        # The repeats are known once the trials have ended.
        for stage in ("trials", "repeats"):
            jobs: list[Job] = getattr(self, stage)
            left = {job.folder: job for job in jobs if self.rows_of(job) is None}
            with closing(self._ended(list(left.values()), workers, listener)) as ended:
                for job, result in ended:
                    if isinstance(result, str):
                        names = [(job.backbone, task, job.label) for task in job.tasks]
                        self.failed += [Failure(*name, result) for name in names]
                        log(f"{job.title}: {result}")
                    else:
                        self._rows[job.folder] = result
                        log(f"{job.title}: done")

    def rows_of(self, job: Job) -> list[Row] | None:
        """Return a job's rows, one per task; None where it has not ended, or ended as another."""
        if job.folder not in self._rows:
            self._rows[job.folder] = read_cell(self.out / job.folder, job)
        rows = self._rows[job.folder]
        if rows is None:
            return None
        tried, chosen = len(job.method.trials), dict(job.settings)
        return [replace(row, label=job.label, trials=tried, chosen=chosen) for row in rows]

    @property
    def chosen(self) -> list[Job]:
        """The job of the chosen trial, of each cell whose trials have all ended."""
        groups: dict[tuple[str, ...], dict[int, list[Job]]] = {}
        for job in self.trials:
            together = () if job.method.choose == "all" else job.tasks
            group = groups.setdefault((job.backbone, job.label, *together), {})
            group.setdefault(job.trial, []).append(job)
        found: list[Job] = []
        for group in groups.values():
            if not any(self.rows_of(job) is None for jobs in group.values() for job in jobs):
                rows = {trial: self._all_rows(jobs) for trial, jobs in group.items()}
                found += group[choose(rows, group[0][0].method.max_bits)]
        return found

    @property
    def repeats(self) -> list[Job]:
        """The jobs of the other seeds, ended or not, of cells whose trial is chosen."""
        return repeats(self.manifest, self.chosen)

    @property
    def ended(self) -> list[Job]:
        """The chosen trials and their repeats that have ended: the jobs that ``rows`` come from."""
        return [job for job in (*self.chosen, *self.repeats) if self.rows_of(job) is not None]

    @property
    def rows(self) -> list[Row]:
        """Of the chosen trials, all seeds."""
        return self._all_rows(self.ended)

    @property
    def tried(self) -> list[Row]:
        """Of all trials, with the first seed."""
        return self._all_rows(self.trials)

    @property
    def waiting(self) -> list[Job]:
        """Not ended."""
        return [job for job in (*self.trials, *self.repeats) if self.rows_of(job) is None]

    def _all_rows(self, jobs: Iterable[Job]) -> list[Row]:
        return [row for job in jobs for row in self.rows_of(job) or ()]

    def _ended(
        self, jobs: Sequence[Job], workers: int, listener: Callable[[str], Listener | None]
    ) -> Generator[tuple[Job, list[Row] | str], None, None]:
        """Run jobs; yields each when it has ended, with its rows or with what went wrong."""
        attempt = partial(_attempt, sources=self.sources, out=self.out)
        if workers > 1 and len(jobs) > 1:
            yield from side_by_side(attempt, jobs, workers)
        else:
            for job in jobs:
                yield job, attempt(job, listener=listener(job.title))


def _attempt(
    job: Job, sources: Sources, out: Path, listener: Listener | None = None
) -> list[Row] | str:
    """Run a job to its rows, which its folder then holds; or to what went wrong, in one line."""
    folder = out / job.folder
    try:
        backbone = sources.backbone(job.choice, job.recipes[job.tasks[0]].image_size)
        data = {task: sources.data(task) for task in job.tasks}
        results = train_job(job, backbone, data, folder, listener)
        of_line = (job.backbone, job.label, len(job.method.trials), job.settings)
        rows = [row_of(result, *of_line) for result in results]
        content = {"identity": job.identity(), "rows": [row.to_json() for row in rows]}
        write_file(folder / CELL, json.dumps(content, indent=1) + "\n")
        return rows
    except _FAILURES as error:
        return " ".join(f"{type(error).__name__}: {error}".split())


def train_job(
    job: Job,
    backbone: Backbone,
    data: Mapping[str, ImageData],
    folder: Path,
    listener: Listener | None = None,
) -> list[TrainResult]:
    """Return a job's results, one per task, after training what is not finished in ``folder``.

    They go by the job's method, also where ``tune`` found the head alone to be the best setting of it.

    Raises what ``train`` raises; the next call then goes on from the last checkpoint.
    """
    if job.method.method == PACKNET:
        return train_packnet(backbone, data, job.recipes, folder, listener=listener)
    (task,) = job.tasks
    result = train(
        backbone,
        data[task],
        task,
        job.recipes[task],
        folder,
        resume=True,
        listener=listener,
    )
    return [replace(result, method=job.method.method)]


def read_cell(folder: Path, job: Job) -> list[Row] | None:
    """Return the rows of a job that ended in ``folder``, None where it has not or was another."""
    try:
        content = strict_json((folder / CELL).read_bytes())
        identity = content["identity"]
        recipes = {  # as an older version wrote them, in today's words
            task: Recipe.from_json(recipe).identity()
            for task, recipe in identity["recipes"].items()
        }
        if {**identity, "recipes": recipes} != job.identity():
            return None
        return [Row(**row) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # train() says what is wrong with the folder, if anything is
