"""A progress bar with images per second and time left, and one line an epoch, on a rich console."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from piggyback.training.events import EpochRow, Listener, Plan, Step


class ProgressBar(Listener):
    """Shows a run on ``console`` (default: standard error); the bar only where that is a terminal.

    >>> ProgressBar(Console(quiet=True)).on_stage("reading images")
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.plan: Plan | None = None

    def on_stage(self, text: str) -> None:
        """Show what is going on below the lines so far."""
        self._show(text, total=None)

    def on_start(self, plan: Plan) -> None:
        """Say what will be trained."""
        self.plan = plan
        self._close()
        arithmetic = "float32" if plan.amp == "no" else plan.amp
        layout = ", channels last" if plan.channels_last else ""
        again = f", going on from epoch {plan.done_epochs + 1}" if _resumed(plan) else ""
        self._line(
            f"{plan.name} · {plan.method}: {plan.counts['train']} images, "
            f"{plan.image_size} px ({plan.size_reason}), {plan.epochs} epochs of "
            f"{plan.steps} steps, {arithmetic}{layout}{again}"
        )
        total = plan.epochs * plan.steps
        done = plan.done_epochs * plan.steps + plan.done_steps
        self._show(f"epoch {plan.done_epochs + 1}/{plan.epochs}", total=total, completed=done)

    def on_step(self, step: Step) -> None:
        """Move the bar."""
        if self.bar is None or self.task is None or self.plan is None:
            return
        self.bar.update(
            self.task,
            completed=(step.epoch - 1) * self.plan.steps + step.step,
            description=f"epoch {step.epoch}/{self.plan.epochs}",
            numbers=f"loss {step.loss:.3f} · {step.images_per_second:.0f} img/s · "
            f"{_clock(step.seconds_left)} left",
        )

    def on_epoch(self, row: EpochRow) -> None:
        """Print the epoch's line."""
        of = f"/{self.plan.epochs}" if self.plan else ""
        kept = "" if row.density is None else f"  kept {100 * row.density:.1f} %"
        self._line(
            f"  epoch {row.epoch}{of}  loss {row.train_loss:.3f}  val {row.val_accuracy:.1f} %"
            f"{kept}  {row.images_per_second:.0f} img/s{'  best' if row.best else ''}"
        )

    def on_end(self) -> None:
        """Take the bar away."""
        self._close()

    def _line(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def _show(self, text: str, total: float | None, completed: int = 0) -> None:
        self._close()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(text, total=total, completed=completed, numbers="")
        if self.console.is_terminal:
            self.bar.start()

    def _close(self) -> None:
        if self.bar is not None and self.console.is_terminal:
            self.bar.stop()
        self.bar, self.task = None, None


def _resumed(plan: Plan) -> bool:
    return plan.done_epochs + plan.done_steps > 0


def _clock(seconds: float) -> str:
    """Return minutes and seconds, with hours where there are some.

    >>> _clock(75), _clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
