"""One job: trained, or found finished in its folder; the rows it gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from piggyback.lab.experiments.manifest import PACKNET
from piggyback.lab.experiments.plan import Job
from piggyback.lab.experiments.sources import Sources
from piggyback.lab.packnet import train_packnet
from piggyback.lab.tables.cells import CellRow
from piggyback.train import Listener, TrainResult, train
from piggyback.train.logs import write_text
from piggyback.train.recipe import current

CELL = "cell.json"
"""The file in a job's folder that says it is finished, and with what."""


def run_job(
    job: Job, sources: Sources, out: Path, listener: Listener | None = None
) -> list[CellRow]:
    """Return a job's rows, one a task, after training what is not finished below ``out``.

    Raises what ``train`` raises; the next call then goes on from the last checkpoint.
    """
    if (rows := finished(job, out)) is not None:
        return rows
    folder = out / job.folder
    backbone = sources.backbone(job.backbone, job.recipes[job.tasks[0]].image_size)
    if job.method.method == PACKNET:
        data = {task: sources.data(task) for task in job.tasks}
        results = list(
            train_packnet(
                backbone, data, job.recipes, folder, resume=True, listener=listener
            ).results
        )
    else:
        (task,) = job.tasks
        results = [
            train(
                backbone,
                sources.data(task),
                task,
                job.recipes[task],
                folder,
                resume=True,
                listener=listener,
            )
        ]
    rows = [_row(job, result) for result in results]
    content = {"identity": job.identity(), "rows": [row.to_json() for row in rows]}
    write_text(folder / CELL, json.dumps(content, indent=1) + "\n")
    return rows


def finished(job: Job, out: Path) -> list[CellRow] | None:
    """Return the rows of a job that ended below ``out``, None where it has not or was another."""
    try:
        content = json.loads((out / job.folder / CELL).read_text(encoding="utf-8"))
        identity = content["identity"]
        recipes = {task: current(recipe) for task, recipe in identity["recipes"].items()}
        if {**identity, "recipes": recipes} != job.identity():
            return None
        return [_named(job, CellRow.from_json(row)) for row in content["rows"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # train() says what is wrong with the folder, if anything is


def _named(job: Job, row: CellRow) -> CellRow:
    """A row that may have been made for another line of the table, as this line's."""
    label, count = job.method.label, len(job.method.trials)
    return replace(row, label=label, trials=count, chosen=dict(job.settings))


def _row(job: Job, result: TrainResult) -> CellRow:
    task = result.task
    settings: dict[str, Any] = dict(job.settings)
    return CellRow(
        backbone=job.backbone.name,
        task=result.name,
        label=job.method.label,
        method=job.method.method,
        seed=job.seed,
        accuracy=round(result.accuracy, 4),
        val_accuracy=round(result.val_accuracy, 4),
        bits_per_weight=result.bits_per_weight,
        bytes=result.bytes,
        seconds=round(result.seconds, 2),
        density=task.density if task is not None and task.masks else None,
        trials=len(job.method.trials),
        chosen=settings,
        verdict=result.verdict,
    )
