"""What an experiment takes, and what it leaves: costs, tables, plots, pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from piggyback.errors import CheckpointError, first_line
from piggyback.lab.experiments.plan import Job
from piggyback.lab.experiments.published import PUBLISHED, decathlon_scores
from piggyback.lab.experiments.runner import Experiment
from piggyback.lab.packnet import epochs_after_pruning
from piggyback.lab.tables.formats import table_csv, table_json, table_markdown, verdicts
from piggyback.lab.tables.plots import (
    accuracy_against_bytes,
    density_per_layer,
    density_per_task,
    error_per_task,
    learning_curves,
    save_all,
)
from piggyback.lab.tables.rows import PACKNET, means
from piggyback.lab.tables.segmentation import compare_segmentation
from piggyback.lab.tables.table import Names, ResultTable, result_table
from piggyback.strict_json import strict_json
from piggyback.taskfile.header import read_header
from piggyback.train.result import RESULT, finished

_DRAWN = ("head", "masks", "finetune")
"""Methods whose networks can be made again from what a run leaves."""
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Cost:
    """Of one line of the table: a method with a backbone, on all tasks.

    Lines that share trainings are each counted in full.
    """

    backbone: str
    label: str
    runs: int
    """Trainings, over tasks, trials and seeds."""
    done: int
    """Of these, finished."""
    images: int
    """Passed through the network in training, of all runs."""
    hours: float | None
    """Left, at the speed of this experiment's finished runs with this backbone; None without any."""


def costs(experiment: Experiment) -> list[Cost]:
    """Return what each line of an experiment takes, in the order of the table."""
    chosen = {(job.backbone, job.label, job.tasks) for job in experiment.chosen}
    # Before a trial is chosen, the first stands for its repeats.
    unknown = [
        job
        for job in experiment.trials
        if not job.trial and (job.backbone, job.label, job.tasks) not in chosen
    ]
    known = [*experiment.trials, *experiment.repeats]
    again = unknown * (len(experiment.manifest.seeds) - 1)
    lines = []
    manifest = experiment.manifest
    counts = {task: experiment.sources.train_images(task) for task in manifest.tasks}
    for backbone in manifest.backbones:
        ended = [j for j in known if j.backbone == backbone and experiment.rows_of(j) is not None]
        seconds = sum(row.seconds for job in ended for row in experiment.rows_of(job) or ())
        speed = seconds / max(_passes(ended, counts)[1], 1)
        for label in manifest.methods:
            mine = [j for j in (*known, *again) if (j.backbone, j.label) == (backbone, label)]
            done = [job for job in ended if job.label == label]
            images, pixels = _passes(mine, counts)
            left = pixels - _passes(done, counts)[1]
            hours = left * speed / 3600 if ended else None
            lines.append(Cost(backbone, label, len(mine), len(done), images, hours))
    return lines


def _passes(jobs: Iterable[Job], counts: Mapping[str, int]) -> tuple[int, int]:
    """Images, and pixels, that jobs pass through their networks in training."""
    images = pixels = 0
    for job in jobs:
        for task in job.tasks:
            recipe = job.recipes[task]
            count = counts[task]
            epochs = recipe.epochs_for(count)
            if job.method.method == PACKNET and task != job.tasks[-1]:  # which is not pruned
                epochs += epochs_after_pruning(recipe, count)
            images += epochs * count
            pixels += epochs * count * (recipe.image_size or 224) ** 2
    return images, pixels


def table_of(experiment: Experiment) -> ResultTable:
    """Return an experiment's table, beside the published numbers that its manifest names."""
    manifest, rows = experiment.manifest, experiment.rows
    planned = [
        (backbone, task, label)
        for backbone in manifest.backbones
        for label in manifest.methods
        for task in manifest.tasks
    ]
    published = PUBLISHED[manifest.published] if manifest.published else {}
    beside: dict[Names, float] = {}
    for backbone, task, label in planned:
        names = (backbone, task, manifest.methods[label].published or "")
        if names in published:
            beside[backbone, task, label] = published[names]
    return result_table(
        rows,
        planned=planned,
        failed=experiment.failed,
        published=beside,
        scores=decathlon_scores(means(rows)) if manifest.score == "decathlon" else {},
        reference=manifest.reference or "finetune",
    )


def write(experiment: Experiment) -> tuple[Path, ...]:
    """Return the tables and plots of an experiment after writing them into its folder."""
    table, rows = table_of(experiment), experiment.rows
    title = f"# {experiment.manifest.title}\n\n"
    texts = {
        "table.md": title
        + table_markdown(table)
        + "".join(f"\n{line}\n" for line in verdicts(rows)),
        "table.csv": table_csv(table),
        "table.json": table_json(table),
        "trials.json": json.dumps([row.to_json() for row in experiment.tried], indent=1) + "\n",
    }
    figures = {}
    if rows:
        figures["error.png"] = error_per_task(table)
        figures["accuracy.png"] = accuracy_against_bytes(table)
    if any(row.density is not None for row in rows):
        figures["density-per-task.png"] = density_per_task(table)
    if layers := _of_first_seed(experiment, _layers):
        figures["density-per-layer.png"] = density_per_layer(layers)
    if curves := _of_first_seed(experiment, _curve):
        figures["curves.png"] = learning_curves(curves, table.measure)
    return save_all(experiment.out, texts, figures)


def _of_first_seed(
    experiment: Experiment, read: Callable[[Path, str], _Found | None]
) -> dict[tuple[str, str], _Found]:
    """What ``read`` finds in the folders of the first seed's runs, by task and label."""
    several = len(experiment.manifest.backbones) > 1
    found = {}
    for job in experiment.chosen:
        task, *more = job.tasks
        if not more and (value := read(experiment.out / job.folder, task)):
            found[f"{job.backbone}, {task}" if several else task, job.label] = value
    return found


def _layers(folder: Path, task: str) -> Mapping[str, float] | None:
    """Density by masked weight, from the task file."""
    file = folder / f"{task}.safetensors"
    if not file.exists():
        return None
    return {layer.name: layer.density for layer in read_header(file).layers}


def _curve(folder: Path, task: str) -> Mapping[int, float] | None:
    """Val accuracy by training step."""
    try:
        result = strict_json((folder / RESULT).read_bytes())["result"]
        steps = result["provenance"]["steps_per_epoch"]
        return {row["epoch"] * steps: row["val_accuracy"] for row in result["history"]}
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{str(folder / RESULT)!r} is damaged: {first_line(error)}; delete its folder to train anew"
        ) from error


def draw(experiment: Experiment) -> tuple[Path, ...]:
    """Return the tables and pictures of an experiment's segmentation tasks after writing them.

    They go below ``out/BACKBONE/TASK``, from the runs that are finished; test is run through each.
    """
    cells: dict[tuple[str, str], dict[str, list[Job]]] = {}
    for job in experiment.ended:
        task, *more = job.tasks
        drawn = not more and job.method.method in _DRAWN
        if drawn and experiment.manifest.kind(task) == "segmentation":
            lines = cells.setdefault((job.backbone, task), {})
            lines.setdefault(job.label, []).append(job)
    written: list[Path] = []
    for (_, task), lines in cells.items():
        results = {
            label: [r for job in jobs if (r := finished(experiment.out / job.folder))]
            for label, jobs in lines.items()
        }
        job = next(iter(lines.values()))[0]
        backbone = experiment.sources.backbone(job.choice, job.recipes[task].image_size)
        folder = experiment.out / job.folder.parents[2]
        written += compare_segmentation(backbone, experiment.sources.data(task), results, folder)
    return tuple(written)
