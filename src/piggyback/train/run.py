"""A run under way: what it is made of, where it stands, how that is saved and put back."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import TrainingError
from piggyback.images.preprocessing import Preprocessing
from piggyback.train import checkpoint
from piggyback.train.data.batches import TrainBatches
from piggyback.train.data.sets import ImageData
from piggyback.train.events import EpochRow, Listener
from piggyback.train.guard import Guard
from piggyback.train.logs import write_history
from piggyback.train.methods import Learner, Product
from piggyback.train.processes import processes
from piggyback.train.recipe import Recipe
from piggyback.train.speed import Speed

CHECKPOINT = "checkpoint.safetensors"
"""The checkpoint's name in a run's folder."""


@dataclass
class Progress:
    """Where a run is: everything that changes besides tensors."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done of the epoch that runs."""
    loss: float = 0.0
    """Sum over the labels of the epoch that runs."""
    right: int = 0
    seen: int = 0
    """Labels: one an image, or one at each pixel that is not void."""
    images: int = 0
    train_seconds: float = 0.0
    """Spent in steps, over all resumes; of the epoch that runs, in ``epoch_seconds``."""
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    """Since the run began, over all resumes."""
    stopped: bool = False
    """Out of patience."""
    history: list[EpochRow] = field(default_factory=list)

    @property
    def best(self) -> EpochRow | None:
        """The best epoch so far: the last that was one when it ended."""
        return next((row for row in reversed(self.history) if row.best), None)

    def is_best(self, accuracy: float, count: int) -> bool:
        """Return whether an epoch with this val accuracy (percent) on ``count`` labels is the best so far.

        It is unless an earlier one was better by more than two standard errors of their difference: few val images
        tell epochs apart by chance, and the last ones, at the lowest rates, are the better ones otherwise.
        """
        top = max((row.val_accuracy for row in self.history), default=accuracy) / 100
        share = (top * count + 1) / (count + 2)  # of all images right is no proof of certainty
        error = math.sqrt(2 * share * (1 - share) / max(count, 1))
        return accuracy / 100 >= top - 2 * error

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Progress:
        """Return what ``to_json`` wrote."""
        return Progress(**{**values, "history": [EpochRow(**row) for row in values["history"]]})


@dataclass
class Run:
    """One training under way."""

    name: str
    recipe: Recipe
    data: ImageData
    preprocessing: Preprocessing
    learner: Learner
    speed: Speed
    device: torch.device
    identity: dict[str, Any]
    listener: Listener
    folder: Path | None = None
    size_reason: str = ""
    """Why images have the size that ``preprocessing`` gives them."""
    progress: Progress = field(default_factory=Progress)
    best: Product | None = None
    """What the best epoch left."""
    guard: Guard | None = None
    """Of masks; None for other methods."""
    resumed_seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    saved_at: float = field(default_factory=time.perf_counter)

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return self.recipe.epochs_for(len(self.data.train))

    @property
    def checkpoint(self) -> Path | None:
        """Where checkpoints go."""
        return None if self.folder is None else self.folder / CHECKPOINT

    def batches(self, epoch: int) -> TrainBatches:
        """Return the batches of an epoch (from 0), this process's part."""
        state = processes()
        return TrainBatches(
            self.data.train,
            self.preprocessing,
            self.recipe.augment,
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            epoch=epoch,
            rank=state.process_index,
            world=state.num_processes,
        )

    def elapsed(self) -> float:
        """Return the seconds since the run began, over all resumes."""
        return self.resumed_seconds + time.perf_counter() - self.started


def save(run: Run) -> None:
    """Write checkpoint and logs, from the main process; TrainingError rather than keep NaN."""
    run.saved_at = time.perf_counter()
    place = run.checkpoint
    if place is None or not processes().is_main_process:
        return
    tensors = {f"live/{name}": t for name, t in run.learner.live().items()}
    state = checkpoint.optimizer_tensors(run.learner.optimizer)
    tensors |= {f"optimizer/{name}": t for name, t in state.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise diverged(run, f"{name} is no longer finite", run.progress.epoch)
    if run.best is not None:
        tensors |= {f"best/{name}": t for name, t in run.learner.flatten(run.best).items()}
    run.progress.seconds = run.elapsed()
    values = {**run.progress.to_json(), "speed": asdict(run.speed)}
    if run.guard is not None:
        values["guard"] = run.guard.to_json()
        tensors |= {f"good/{name}": tensor for name, tensor in run.guard.good.items()}
    checkpoint.write(place, checkpoint.Checkpoint(run.identity, values, tensors))
    if not run.progress.step:
        write_history(place.parent, run.progress.history)


def restore(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Put a run where ``saved`` was made; raises CheckpointError where tensors do not fit."""
    parts: dict[str, dict[str, Tensor]] = {"live": {}, "optimizer": {}, "best": {}, "good": {}}
    for name, tensor in saved.tensors.items():
        part, rest = name.split("/", 1)
        parts[part][rest] = tensor
    checkpoint.load_live(run.learner.live(), parts["live"])
    checkpoint.load_optimizer(run.learner.optimizer, parts["optimizer"])
    values = {k: v for k, v in saved.progress.items() if k not in ("speed", "guard")}
    run.progress = Progress.from_json(values)
    if (guard := saved.progress.get("guard")) is not None:
        run.guard = Guard(**guard, good=parts["good"])
        run.guard.resume(run.learner)
    run.resumed_seconds = run.progress.seconds
    if parts["best"]:
        run.best = run.learner.unflatten(parts["best"])


def diverged(run: Run, what: str, epoch: int) -> TrainingError:
    """Return the error that says what is no longer a number, since when, and what to try."""
    place = run.checkpoint
    kept = place if place is not None and place.exists() else "none"
    rates = ", ".join(f"{group['peak_lr']:g}" for group in run.learner.optimizer.param_groups)
    return TrainingError(
        f"{run.name}: {what} at epoch {epoch + 1}, step {run.progress.step}; try lower learning "
        f"rates (peaks now {rates}) or clip; last good checkpoint: {kept}"
    )
