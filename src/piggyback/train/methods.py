"""Training methods: what a run changes, with which optimizer, and what it leaves behind.

    masks      which weights to keep, head, normalisation if asked   -> a task
    head       the head only                                        -> a task without masks
    finetune   every weight of a copy                               -> a state dict
    lora       low-rank adapters and head, normalisation if asked   -> these tensors

A method is a function that prepares a learner; ``loop.py`` trains any of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from piggyback.errors import InputError, near_misses

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from piggyback.network.backbone import Backbone
    from piggyback.taskfile.task import Task
    from piggyback.texts.preprocessing import Prepares
    from piggyback.train.recipe import Recipe


@dataclass(frozen=True)
class Setup:
    """What a learner is made for."""

    name: str
    classes: tuple[str, ...]
    recipe: Recipe
    preprocessing: Prepares
    steps: int
    """Optimizer steps of the whole run."""
    device: torch.device
    channels_last: bool
    kind: str = "classification"
    """Of the task, as ``ImageData.kind``."""
    start: Task | None = None
    """A task to go on from, for methods that learn one."""
    units: tuple[str, ...] = ()
    scaling: tuple[tuple[float, float], ...] = ()


class Learner(Protocol):
    """One network being trained by one method."""

    network: nn.Module
    """Called with images (n, 3, s, s) or tokens (n, length), it gives the task's logits."""
    head: nn.Module | None
    """The classifier in training, where the rest of the network may learn nothing at all; else None."""
    optimizer: torch.optim.Optimizer
    """Its groups carry ``peak_lr``, which the schedule scales."""

    def mode(self, training: bool) -> None:
        """Set training or evaluation mode, normalisation as the recipe says."""

    def live(self) -> dict[str, Tensor]:
        """Return what training changes besides the optimizer's state, by name, not copied."""

    def capture(self) -> Learned:
        """Return a copy of what has been learned so far."""

    def unflatten(self, tensors: Mapping[str, Tensor]) -> Learned:
        """Return what ``Learned.flatten`` took apart."""

    def close(self) -> None:
        """Give the backbone's module back as it came."""


class Learned(Protocol):
    """What a learner had learned at one moment: kept of the best epoch, and written when the run ends."""

    @property
    def density(self) -> float | None:
        """Fraction of the masked weights that are kept; None without masks."""

    def flatten(self) -> dict[str, Tensor]:
        """Return it as named tensors, for a checkpoint."""

    def deploy(self) -> nn.Module:
        """End training; return the network as this makes it, in evaluation mode."""

    def to_file(self, provenance: Mapping[str, Any], **found: Any) -> ResultFile:
        """Return the file that keeps it, with where it comes from, and fields of ``TaskInfo`` that were found at the
        end of the run."""


@dataclass(frozen=True, eq=False)
class ResultFile:
    """The file of a result, and what it holds."""

    data: bytes
    suffix: str
    """What stands between the run's name and ``.safetensors``."""
    task: Task | None = None
    state: Mapping[str, Tensor] | None = None
    """Tensors by name, where the result is no task."""
    bits_per_weight: float | None = None


Method: TypeAlias = "Callable[[Backbone, Setup], Learner]"
METHODS: dict[str, str | Method] = {
    "masks": "piggyback.train.learners:masks",
    "head": "piggyback.train.learners:head",
    "finetune": "piggyback.train.learners:FinetuneLearner",
    "lora": "piggyback.lab.lora.learner:LoraLearner",
}
"""Methods by name: a callable, or ``module:function``, which is imported when a run asks for it. Add an entry to
train with a method of your own."""


def method_of(name: str) -> Method:
    """Return the method called ``name``; raises InputError for another name.

    >>> method_of("mask")
    Traceback (most recent call last):
    ...
    piggyback.errors.InputError: method 'mask': expected one of masks, head, finetune, lora; \
did you mean 'masks'?
    """
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise InputError(f"method {name!r}: expected one of {known}{near_misses(name, METHODS)}")
    entry = METHODS[name]
    if isinstance(entry, str):
        module, _, function = entry.partition(":")
        return cast("Method", getattr(importlib.import_module(module), function))
    return entry
