"""What the terminal shows: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from piggyback.training.events import EpochRow, Listener, Plan, Step


def results() -> Console:
    """Return the console for results. What is printed is text: nothing in a name is markup or an emoji."""
    return Console(highlight=False, markup=False, emoji=False, quiet=not _first_process())


def notes() -> Console:
    """Return the console for everything that is not a result, so that results can be piped."""
    return Console(
        stderr=True, highlight=False, markup=False, emoji=False, quiet=not _first_process()
    )


def write_json(value: Any) -> None:
    """Write ``value`` as JSON to standard output, unwrapped."""
    if _first_process():
        typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _first_process() -> bool:
    """Whether this process speaks, where ``accelerate launch`` has started several."""
    return os.environ.get("RANK", "0") == "0"


class Show(Listener):
    """Shows a run: a line an epoch and, in a terminal, a bar with images/s and time left."""

    def __init__(self, label: str = "") -> None:
        self.console = notes()
        self.label = label
        self.plan: Plan | None = None
        self.progress: Progress | None = None
        self.bar = TaskID(0)

    def on_stage(self, text: str) -> None:
        """Say what is going on where it can be wiped out again."""
        if self.console.is_terminal and self.plan is None:
            self.console.print(f"{text} ...", style="dim", end="\r")

    def on_start(self, plan: Plan) -> None:
        """Begin a bar."""
        self.plan = plan
        if not self.label:
            self.label = f"{plan.name} {plan.method}"
        if plan.done_epochs or plan.done_steps:
            self.console.print(
                f"{self.label}: going on after epoch {plan.done_epochs}, step {plan.done_steps}"
            )
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}", markup=False),
            console=self.console,
            expand=True,
            transient=True,
        )
        done = plan.done_epochs * plan.steps + plan.done_steps
        self.bar = self.progress.add_task(
            self.label, total=plan.epochs * plan.steps, completed=done, told=""
        )
        self.progress.start()

    def on_step(self, step: Step) -> None:
        """Move the bar."""
        if self.progress is None or self.plan is None:
            return
        left = timedelta(seconds=round(step.seconds_left))
        epoch = f"epoch {step.epoch}/{self.plan.epochs}"
        self.progress.update(
            self.bar,
            completed=(step.epoch - 1) * self.plan.steps + step.step,
            told=f"{epoch}, {step.images_per_second:.0f} images/s, {left}",
        )

    def on_epoch(self, row: EpochRow) -> None:
        """Print the epoch's line."""
        epochs = 0 if self.plan is None else self.plan.epochs
        kept = "" if row.density is None else f", kept {100 * row.density:.1f}%"
        self.console.print(
            f"{self.label} {row.epoch}/{epochs}: loss {row.train_loss:.3f}, "
            f"val {row.val_accuracy:.1f}%{kept}, {row.images_per_second:.0f} images/s"
        )

    def on_notice(self, text: str) -> None:
        """Print it."""
        self.console.print(f"{self.label}: {text}", soft_wrap=True)

    def on_end(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
