"""Logs of a run: metrics.csv, metrics.jsonl and TensorBoard events in its folder.

The two text files are rewritten from the history at every epoch, so a resumed run leaves no row
twice.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from piggyback.train.checkpoint import write_atomically
from piggyback.train.events import EpochRow, Listener, Plan, Step

EVERY = 10
"""Steps between two points of TensorBoard's step curves."""


def write_history(folder: Path, history: Sequence[EpochRow]) -> None:
    """Write ``metrics.csv`` and ``metrics.jsonl``, each in one step; raises CheckpointError."""
    table = io.StringIO()
    names = [field.name for field in fields(EpochRow)]
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_json() for row in history)
    lines = "".join(json.dumps(row.to_json()) + "\n" for row in history)
    for name, text in (("metrics.csv", table.getvalue()), ("metrics.jsonl", lines)):
        write_text(folder / name, text)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step; raises CheckpointError, the old file intact."""
    write_atomically(path, lambda temporary: _put(temporary, text))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


class TensorBoard(Listener):
    """Writes curves for TensorBoard into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.steps = 1

    def on_start(self, plan: Plan) -> None:
        """Open the log; what a killed run wrote past its checkpoint is hidden."""
        self.steps = plan.steps
        done = plan.done_epochs * plan.steps + plan.done_steps
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always wanted

        self.writer = SummaryWriter(self.folder, purge_step=done if done else None)

    def on_step(self, step: Step) -> None:
        """Write the step's curves."""
        at = (step.epoch - 1) * self.steps + step.step
        if self.writer is not None and at % EVERY == 0:
            self.writer.add_scalar("step/loss", step.loss, at)
            self.writer.add_scalar("step/lr", step.lr, at)
            self.writer.add_scalar("step/images_per_second", step.images_per_second, at)

    def on_epoch(self, row: EpochRow) -> None:
        """Write the epoch's curves."""
        if self.writer is None:
            return
        for name, value in row.to_json().items():
            if name not in ("epoch", "best", "lr") and value is not None:
                self.writer.add_scalar(f"epoch/{name}", value, row.epoch * self.steps)
        self.writer.flush()

    def on_end(self) -> None:
        """Close the log."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
