"""Logs of a run: metrics.csv and metrics.jsonl in its folder, and a tracker's curves where the recipe asks for them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

from piggyback.errors import InputError, TrainingError, first_line, require
from piggyback.taskfile.disk import write_file
from piggyback.train.events import EpochRow, Plan, Step
from piggyback.train.recipe import Recipe

EVERY = 10
"""Steps between two points of a tracker's step curves."""


def write_history(folder: Path, history: Sequence[EpochRow]) -> None:
    """Write ``metrics.csv`` and ``metrics.jsonl``, each in one step; raises CheckpointError.

    They are written anew from the history at every epoch, so a resumed run leaves no row twice.
    """
    table = io.StringIO()
    names = [field.name for field in fields(EpochRow)]
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in history)
    write_file(folder / "metrics.csv", table.getvalue())
    lines = "".join(json.dumps(asdict(row)) + "\n" for row in history)
    write_file(folder / "metrics.jsonl", lines)


def check_tracker(recipe: Recipe, folder: Path | None) -> None:
    """Raise MissingExtraError or InputError for a tracker that cannot be had."""
    if recipe.tracker == "none":
        return
    require(recipe.tracker, recipe.tracker)
    if folder is None:
        raise InputError(f"tracker {recipe.tracker!r} without a run's folder: expected out")


class Curves:
    """Sends a run's curves to a tracker, through Accelerate's; does nothing without one."""

    def __init__(self, recipe: Recipe, name: str, folder: Path | None, plan: Plan) -> None:
        self.steps, self.tracker = plan.steps, None
        done = plan.done_epochs * plan.steps + plan.done_steps
        if folder is None or recipe.tracker == "none":
            return
        made: Any
        try:
            if recipe.tracker == "tensorboard":  # hides what a killed run wrote past its checkpoint
                made = TensorBoardTracker("tensorboard", folder, purge_step=done or None)
            elif recipe.tracker == "wandb":
                made = WandBTracker("piggyback", name=name, dir=str(folder))
            else:
                made = MLflowTracker("piggyback", run_name=name)
            if hasattr(made, "start"):  # older versions of Accelerate start when made
                made.start()
            if not done:
                made.store_init_configuration({k: str(v) for k, v in recipe.to_json().items()})
        except Exception as error:  # each tracker has its own
            raise TrainingError(
                f"tracker {recipe.tracker!r} cannot be started: {first_line(error)}; set it up, or leave it out"
            ) from error
        self.tracker = made

    def step(self, step: Step) -> None:
        """Add a point to the step curves, at every tenth step."""
        at = (step.epoch - 1) * self.steps + step.step
        if self.tracker is not None and at % EVERY == 0:
            names = ("loss", "lr", "images_per_second")
            self.tracker.log({f"step/{name}": getattr(step, name) for name in names}, step=at)

    def epoch(self, row: EpochRow) -> None:
        """Add a point to the epoch curves."""
        if self.tracker is not None:
            skip = ("epoch", "best", "lr")
            values = {k: v for k, v in asdict(row).items() if k not in skip and v is not None}
            named = {f"epoch/{name}": value for name, value in values.items()}
            self.tracker.log(named, step=row.epoch * self.steps)

    def close(self) -> None:
        """End the tracker's run."""
        if self.tracker is not None:
            self.tracker.finish()
