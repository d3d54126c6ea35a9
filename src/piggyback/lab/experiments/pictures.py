"""What the lines of a segmentation experiment see: a table with a row a class, and pictures side by side."""

from __future__ import annotations

from pathlib import Path

from piggyback.lab.experiments.runner import Outcome
from piggyback.lab.experiments.sources import Sources
from piggyback.lab.tables.networks import result_in
from piggyback.lab.tables.segmentation import compare_segmentation
from piggyback.train import TrainResult

_DRAWN = ("head", "masks", "finetune")
"""Methods whose networks can be made again from what a run leaves."""


def draw(outcome: Outcome, sources: Sources, out: Path) -> tuple[Path, ...]:
    """Return the tables and pictures of an experiment's segmentation tasks after writing them.

    They go below ``out/BACKBONE/TASK``, from the runs that are finished; test is run through each.
    """
    cells: dict[tuple[str, str], dict[str, list[TrainResult]]] = {}
    for job in outcome.chosen:
        task, *more = job.tasks
        drawn = not more and job.method.method in _DRAWN
        if drawn and outcome.manifest.kind(task) == "segmentation":
            runs = cells.setdefault((job.backbone.name, task), {})
            runs.setdefault(job.method.label, []).append(result_in(out / job.folder))
    written: list[Path] = []
    for (name, task), runs in cells.items():
        data = sources.data(task)
        job = next(
            job for job in outcome.chosen if (job.backbone.name, job.tasks[0]) == (name, task)
        )
        backbone = sources.backbone(job.backbone, job.recipes[task].image_size)
        made = compare_segmentation(backbone, data, runs, out / job.folder.parents[2])
        written += [made.table, made.picture]
    return tuple(written)
