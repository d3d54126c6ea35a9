"""Training methods: what a run changes, with which optimizer, and what it leaves behind.

    masks      which weights to keep, head, normalisation if asked   -> a task
    head       the head only                                        -> a task without masks
    finetune   every weight of a copy                               -> a state dict
    lora       low-rank adapters and head, normalisation if asked   -> these tensors

A method prepares a learner; ``loop.py`` trains any of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from piggyback.errors import InputError, near_misses
from piggyback.images.preprocessing import Preprocessing
from piggyback.network.backbone import Backbone
from piggyback.taskfile.task import Task
from piggyback.train.recipe import Recipe

Product: TypeAlias = "Task | dict[str, Tensor]"
"""What a run leaves behind: a task, or tensors: of a fully trained copy, or adapters and head."""


@dataclass(frozen=True)
class Setup:
    """What a learner is made for."""

    name: str
    classes: tuple[str, ...]
    recipe: Recipe
    preprocessing: Preprocessing
    steps: int
    """Optimizer steps of the whole run."""
    device: torch.device
    channels_last: bool
    kind: str = "classification"
    """Of the task, as ``ImageData.kind``."""


class Learner(Protocol):
    """One network being trained by one method."""

    network: nn.Module
    """Called with images (n, 3, s, s), it gives the task's logits."""
    head: nn.Module | None
    """The classifier in training, where the rest of the network may learn nothing at all; else None."""
    optimizer: torch.optim.Optimizer
    """Its groups carry ``peak_lr``, which the schedule scales."""
    fingerprint: str
    """Of the backbone it started from."""
    notes: Mapping[str, Any]
    """What the file of a result that is no task says besides its tensors: plain JSON by name."""

    def mode(self, training: bool) -> None:
        """Set training or evaluation mode, normalisation as the recipe says."""

    def live(self) -> dict[str, Tensor]:
        """Return what training changes besides the optimizer's state, by name, not copied."""

    def capture(self) -> Product:
        """Return a copy of the result as it stands."""

    def flatten(self, product: Product) -> dict[str, Tensor]:
        """Return a captured result as named tensors, for a checkpoint."""

    def unflatten(self, tensors: Mapping[str, Tensor]) -> Product:
        """Return the result that ``flatten`` took apart."""

    def deploy(self, product: Product) -> nn.Module:
        """End training; return the network as ``product`` makes it, in evaluation mode."""

    def close(self) -> None:
        """Give the backbone's module back as it came."""


Method: TypeAlias = Callable[[Backbone, Setup], Learner]
METHODS: dict[str, str | Method] = {
    "masks": "piggyback.train.learners:masks",
    "head": "piggyback.train.learners:head",
    "finetune": "piggyback.train.learners:finetune",
    "lora": "piggyback.lab.lora.learner:lora",
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
        return cast(Method, getattr(importlib.import_module(module), function))
    return entry
