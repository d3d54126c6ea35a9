"""What a run tells while it goes: library code prints nothing, it calls a listener."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A run about to start, or to go on."""

    name: str
    method: str
    epochs: int
    steps: int
    """Steps of one epoch."""
    batch_size: int
    done_epochs: int
    """Epochs that a checkpoint had already."""
    done_steps: int
    """Steps of the next epoch that a checkpoint had already."""
    amp: str
    channels_last: bool
    size: str
    """Of what the network sees: "224 px", "128 tokens"."""
    size_reason: str
    """Why that size, in a few words: ``the files hold 64``."""
    counts: Mapping[str, int]
    """Samples by split."""
    classes: int
    cut: tuple[str, ...]
    """The splits that were cut from train."""
    what: str = "images"
    """What is learned from: images or texts."""
    score: str = "accuracy"
    """What is measured on val."""
    noun: str = "class"
    """What one of the ``classes`` is called."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, just made."""

    epoch: int
    step: int
    """From 1, within the epoch."""
    loss: float
    lr: float
    """Of the first parameter group: the scores', for masks."""
    images_per_second: float
    seconds_left: float
    """Until the last epoch's last step, at the speed so far."""


@dataclass(frozen=True)
class EpochRow:
    """One epoch, just ended: a row of the logs."""

    epoch: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    """Percent, of the augmented images, while weights were changing."""
    val_loss: float
    val_accuracy: float
    """Percent."""
    density: float | None
    """Fraction of masked weights that are kept; None without masks."""
    lr: float
    images_per_second: float
    seconds: float
    """Since the run began, over all resumes."""
    best: bool
    """Whether it is the best so far: no earlier one's val accuracy is clearly higher, see ``Progress.is_best``."""


class Listener:
    """Is told what a run does; override what you need.

    >>> class Losses(Listener):
    ...     def on_step(self, step):
    ...         print(step.loss)
    """

    def on_stage(self, text: str) -> None:
        """Something that takes a while begins: reading images, testing."""

    def on_start(self, plan: Plan) -> None:
        """Training begins or goes on."""

    def on_step(self, step: Step) -> None:
        """An optimizer step was made."""

    def on_epoch(self, row: EpochRow) -> None:
        """An epoch has ended and was measured on val."""

    def on_notice(self, text: str) -> None:
        """Something happened that a person should know, in one line."""

    def on_end(self) -> None:
        """The run is over, also by an error."""
