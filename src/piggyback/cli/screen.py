"""What the terminal shows: results on standard output, progress on standard error."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from piggyback.cli.messages import in_options
from piggyback.names import plain
from piggyback.train.events import EpochRow, Listener, Plan, Step


class PlainConsole(Console):
    """A console on which nothing in a text is more than text: no markup, no emoji, no codes for the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        quiet = not _first_process()
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False, quiet=quiet)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return ``text`` in one line, codes escaped: a name with a line's end must not look like another message."""
        return super().render_str(plain(text), **options)


def results() -> Console:
    """Return the console for results."""
    return PlainConsole()


def notes() -> Console:
    """Return the console for everything that is not a result, so that results can be piped."""
    return PlainConsole(stderr=True)


def table(*titles: str) -> Table:
    """Return an empty table. A title that begins with ``>`` is of numbers, one with ``+`` of texts that may be long."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        made.add_column(
            title.lstrip(">+"),
            justify="right" if title[0] == ">" else "left",
            overflow="fold" if title[0] == "+" else "ellipsis",
        )
    return made


def grid(facts: Mapping[str, str]) -> Table:
    """Return names and what is to say of each, in two columns."""
    made = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        made.add_row(name, Text(plain(value), overflow="fold"))
    return made


def write_json(value: Any) -> None:
    """Write ``value`` as JSON to standard output, unwrapped."""
    if _first_process():
        typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _first_process() -> bool:
    """Whether this process speaks, where ``accelerate launch`` has started several."""
    return os.environ.get("RANK", "0") == "0"


def program() -> str:
    """Return what starts this program, for a command to be pasted: its name where a shell finds it, else its path."""
    found, here = shutil.which("piggyback"), Path(sys.argv[0])
    if found is not None and (not here.exists() or Path(found).samefile(here)):
        return "piggyback"
    if here.name == "piggyback" and here.exists():
        return shlex.quote(str(here))
    return f"{shlex.quote(sys.executable)} -m piggyback"


@contextmanager
def resumable(folder: Path, *options: str) -> Iterator[None]:
    """At Ctrl-C inside, say what is kept in ``folder`` and the command that goes on: this one with ``options``."""
    try:
        yield
    except KeyboardInterrupt:
        from piggyback.train.checkpoint import CHECKPOINT
        from piggyback.train.result import RESULT

        kept = [place for place in (CHECKPOINT, RESULT) if any(folder.rglob(place))]
        if kept:
            given = [part for part in sys.argv[1:] if part not in (*options, "--overwrite")]
            line = f"{program()} {shlex.join([*given, *options])}"
            notes().print(f"stopped; what was done is kept in {folder}; go on with:")
            notes().print(f"  {line}", soft_wrap=True)
        else:
            notes().print("stopped before the first checkpoint: nothing was kept")
        raise


LINES = 60
"""Of epochs, at most, in a run."""
FIRST_STEPS = 3
"""Steps by whose time that of the whole run is told; one before them warms up."""


class ScreenListener(Listener):
    """Shows a run: what it will be, how long, one line per epoch and, in a terminal, a bar."""

    def __init__(self, label: str = "") -> None:
        self.console = notes()
        self.label = label
        self.plan: Plan | None = None
        self.progress: Progress | None = None
        self.bar = TaskID(0)
        self.begun: tuple[int, float] | None = None
        self.timed = False

    def on_stage(self, text: str) -> None:
        """Say what is going on where it can be wiped out again."""
        if self.console.is_terminal and self.plan is None:
            self.console.print(f"{text} ...", style="dim", end="\r")

    def on_start(self, plan: Plan) -> None:
        """Say what will be done, and begin a bar."""
        self.plan, self.begun, self.timed = plan, None, False
        if not self.label:
            self.label = f"{plan.name} {plan.method}"
        cut = " (cut from train)"
        counts = ", ".join(
            f"{count} {split}{cut * (split in plan.cut)}" for split, count in plan.counts.items()
        )
        several = "es" if plan.noun.endswith("s") else "s"
        names = plan.noun + several * (plan.classes != 1)
        self.console.print(
            f"{self.label}: {plan.classes} {names}, {counts} {plan.what}; {plan.size} ({plan.size_reason}); "
            f"{plan.epochs} epochs of {plan.steps} steps ({plan.epochs * plan.steps}), "
            f"batch {plan.batch_size}"
        )
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
        """Move the bar; after the first steps, say once how long all will take."""
        if self.plan is None:
            return
        done = (step.epoch - 1) * self.plan.steps + step.step
        if not self.timed:
            self._time(done, self.plan.epochs * self.plan.steps)
        if self.progress is None:
            return
        left = timedelta(seconds=round(step.seconds_left))
        epoch = f"epoch {step.epoch}/{self.plan.epochs}"
        self.progress.update(
            self.bar,
            completed=done,
            told=f"{epoch}, {step.images_per_second:.0f} {self.plan.what}/s, {left}",
        )

    def _time(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if self.begun is None:
            self.begun = done, now
        first, since = self.begun
        if done - first >= FIRST_STEPS:
            seconds = (now - since) / (done - first) * (total - first)
            self.console.print(f"{self.label}: {about(seconds)}")
            self.timed = True

    def on_epoch(self, row: EpochRow) -> None:
        """Print the epoch's line; of very many epochs, that of some sixty and of the last."""
        epochs = 0 if self.plan is None else self.plan.epochs
        if row.epoch % -(-max(epochs, 1) // LINES) and row.epoch != epochs:
            return
        kept = "" if row.density is None else f", kept {100 * row.density:.1f}%"
        score = "" if self.plan is None or self.plan.score == "accuracy" else f" {self.plan.score}"
        what = "images" if self.plan is None else self.plan.what
        self.console.print(
            f"{self.label} {row.epoch}/{epochs}: loss {row.train_loss:.3f}, "
            f"val{score} {row.val_accuracy:.1f}%{kept}, {row.images_per_second:.0f} {what}/s"
        )

    def on_notice(self, text: str) -> None:
        """Print it, after the run's name once that is known."""
        prefix = f"{self.label}: " * bool(self.label)
        self.console.print(f"{prefix}{in_options(text)}", soft_wrap=True)

    def on_end(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()


def about(seconds: float) -> str:
    """Return a duration in words, roughly.

    >>> about(4.2), about(80), about(9000)
    ('about 4 s', 'about 1 min', 'about 2.5 h')
    """
    if seconds < 60:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 3600 else f"about {seconds / 3600:.1f} h"
