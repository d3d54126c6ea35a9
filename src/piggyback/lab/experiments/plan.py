"""From a manifest to jobs: every training that an experiment needs, each with a folder of its own.

trials    each backbone, task, method, trial     with the first seed
repeats   each backbone, task, method            with the other seeds, in the trial that was best on val
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

from piggyback.errors import ManifestError
from piggyback.lab.experiments.manifest import BackboneChoice, Manifest, MethodChoice, Source
from piggyback.lab.tables.rows import PACKNET, Row
from piggyback.train import Recipe


@dataclass(frozen=True)
class Job:
    """One training; for PackNet, one sequence of trainings."""

    backbone: str
    """Its name in the manifest."""
    choice: BackboneChoice
    label: str
    """Of the method's line in the table."""
    method: MethodChoice
    tasks: tuple[str, ...]
    """One; for PackNet all, in order."""
    trial: int
    seed: int
    recipes: Mapping[str, Recipe]
    """By task."""
    sources: Mapping[str, Source]
    """Of those of its tasks whose images are a folder's."""

    @property
    def title(self) -> str:
        """What it is called on the screen."""
        tried = f" {_slug(self.settings)}" if len(self.method.trials) > 1 else ""
        return f"{'+'.join(self.tasks)} {self.label}{tried} seed {self.seed}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """The recipe fields that its trial sets."""
        return self.method.trials[self.trial]

    @property
    def folder(self) -> Path:
        """Where it works, below the experiment's folder; another recipe or seed has another.

        Lines of the table that ask for the same training share it.
        """
        method = ",".join(filter(None, (self.method.method, _slug(self.method.recipe))))
        return Path(
            _slug(self.backbone),
            _slug("+".join(self.tasks)),
            method,
            _slug(self.settings) or "run",
            f"seed-{self.seed}",
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides its result, as JSON: a job that ended with another is not this one."""
        values = {
            "backbone": [self.choice.spec, self.choice.checkpoint, self.choice.pretrained],
            "method": self.method.method,
            "recipes": {task: recipe.identity() for task, recipe in self.recipes.items()},
            "order": list(self.tasks),
        }
        if self.sources:
            values["sources"] = {task: source.model_dump() for task, source in self.sources.items()}
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


def trials(manifest: Manifest, prepared: Mapping[str, Mapping[str, Any]]) -> list[Job]:
    """Return the jobs of the first seed: every trial of every method.

    ``prepared`` has the recipe fields that each task's data set asks for, which the manifest may
    override. Raises ManifestError for a recipe that cannot be, and for two of them in one folder.
    """
    jobs = [
        Job(
            backbone=backbone,
            choice=choice,
            label=label,
            method=method,
            tasks=tasks,
            trial=trial,
            seed=manifest.seeds[0],
            recipes={task: _recipe(manifest, prepared, label, task, trial) for task in tasks},
            sources={task: manifest.sources[task] for task in tasks if task in manifest.sources},
        )
        for backbone, choice in manifest.backbones.items()
        for label, method in manifest.methods.items()
        for tasks in _cells(manifest, method)
        for trial in range(len(method.trials))
    ]
    folders: dict[Path, Job] = {}
    for job in jobs:
        other = folders.setdefault(job.folder, job)
        if other.identity() != job.identity():
            raise ManifestError(
                f"experiment {manifest.name!r}: {other.title!r} and {job.title!r} would share the "
                f"folder {job.folder}: expected recipes and trials that differ in letters or digits"
            )
    return jobs


def repeats(manifest: Manifest, chosen: Sequence[Job]) -> list[Job]:
    """Return the jobs of the other seeds; ``chosen`` are those of the first."""
    return [
        replace(
            job,
            seed=seed,
            recipes={task: replace(recipe, seed=seed) for task, recipe in job.recipes.items()},
        )
        for seed in manifest.seeds[1:]
        for job in chosen
    ]


def choose(rows: Mapping[int, Sequence[Row]], max_bits: float | None = None) -> int:
    """Return the trial whose rows, one per task, are best on val in the mean.

    Trials with more bits per weight than ``max_bits`` in a row are left out, unless all have; then
    the smallest is taken.
    """

    def bits(trial: int) -> float:
        return max((row.bits_per_weight or 0.0 for row in rows[trial]), default=0.0)

    def val(trial: int) -> float:
        return sum(row.val_accuracy for row in rows[trial]) / len(rows[trial])

    allowed = [trial for trial in rows if max_bits is None or bits(trial) <= max_bits]
    return max(allowed, key=val) if allowed else min(rows, key=bits)


def recipe_of(method: str, seed: int, *settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe that dotted ``settings`` describe; later ones win.

    >>> recipe_of("masks", 0, {"epochs": 3}, {"augment.flip": True, "epochs": 5}).augment.flip
    True
    """
    values = Recipe().to_json()
    for key, value in (item for setting in settings for item in setting.items()):
        *path, last = key.split(".")
        reduce(dict.__getitem__, path, values)[last] = value
    return Recipe.from_json({**values, "method": method, "seed": seed})


def _cells(manifest: Manifest, method: MethodChoice) -> list[tuple[str, ...]]:
    if method.method != PACKNET:
        return [(task,) for task in manifest.tasks]
    order = tuple(manifest.tasks) if method.order is None else method.order
    return [order] if order else []  # none of its tasks is among those asked for


def _recipe(
    manifest: Manifest,
    prepared: Mapping[str, Mapping[str, Any]],
    label: str,
    task: str,
    trial: int,
) -> Recipe:
    """What is more special wins."""
    method = manifest.methods[label]
    layers = (manifest.recipe, manifest.tasks[task], method.recipe, method.trials[trial])
    try:
        return recipe_of(method.method, manifest.seeds[0], prepared.get(task, {}), *layers)
    except (TypeError, ValueError) as error:  # InputError is a ValueError
        raise ManifestError(f"experiment {manifest.name!r}: method {label!r}: {error}") from error


def _slug(value: str | Mapping[str, Any]) -> str:
    """As a folder's name: letters, digits and a few signs."""
    text = value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())
    return re.sub(r"[^A-Za-z0-9=.,+_-]+", "-", text).strip("-")
