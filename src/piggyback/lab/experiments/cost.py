"""What an experiment takes: trainings, images to pass through the network, hours where known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from piggyback.lab.experiments.jobs import finished
from piggyback.lab.experiments.manifest import PACKNET, BackboneChoice, Manifest, MethodChoice
from piggyback.lab.experiments.plan import Job, trials
from piggyback.lab.experiments.runner import standing
from piggyback.lab.experiments.sources import Sources
from piggyback.lab.packnet import epochs_after_pruning


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


def costs(manifest: Manifest, sources: Sources, out: Path) -> list[Cost]:
    """Return what each line of an experiment takes, in the order of the table."""
    prepared = {task: sources.prepared(task) for task in manifest.tasks}
    planned = trials(manifest, prepared)
    repeated = standing(manifest, sources, out).repeated
    ended = [job for job in (*planned, *repeated) if finished(job, out) is not None]
    lines = []
    for backbone in manifest.backbones:
        speed = _seconds_per_pixel([job for job in ended if job.backbone == backbone], sources, out)
        for method in manifest.methods:
            mine = _of(planned, backbone, method)
            done = _of(ended, backbone, method)
            again = _of(repeated, backbone, method)
            chosen = {job.tasks for job in again}
            # Before a trial is chosen, the first stands for it.
            unknown = [job for job in mine if not job.trial and job.tasks not in chosen]
            again += unknown * (len(manifest.seeds) - 1)
            pixels = sum(_passes(job, sources)[1] for job in (*mine, *again))
            left = pixels - sum(_passes(job, sources)[1] for job in done)
            lines.append(
                Cost(
                    backbone=backbone.name,
                    label=method.label,
                    runs=len(mine) + len(again),
                    done=len(done),
                    images=sum(_passes(job, sources)[0] for job in (*mine, *again)),
                    hours=None if speed is None else left * speed / 3600,
                )
            )
    return lines


def _of(jobs: list[Job], backbone: BackboneChoice, method: MethodChoice) -> list[Job]:
    return [job for job in jobs if (job.backbone, job.method.label) == (backbone, method.label)]


def _passes(job: Job, sources: Sources) -> tuple[int, int]:
    """Images, and pixels, that a job passes through its network in training."""
    images = pixels = 0
    for task in job.tasks:
        recipe = job.recipes[task]
        count = sources.train_images(task)
        epochs = recipe.epochs_for(count)
        if job.method.method == PACKNET and task != job.tasks[-1]:  # which is not pruned
            epochs += epochs_after_pruning(recipe, count)
        seen = epochs * count
        images += seen
        pixels += seen * (recipe.image_size or 224) ** 2
    return images, pixels


def _seconds_per_pixel(jobs: list[Job], sources: Sources, out: Path) -> float | None:
    seconds = pixels = 0.0
    for job in jobs:
        if rows := finished(job, out):
            seconds += sum(row.seconds for row in rows)
            pixels += _passes(job, sources)[1]
    return seconds / pixels if pixels else None
