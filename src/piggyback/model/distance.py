"""How far a task is from what the backbone knows: how well its features tell the classes apart as they are.

A task that a linear classifier solves on the frozen features needs few weights masked out; one that it does not solve
gains from many. The classifier is a ridge regression on one-hot labels, judged on each image by all others: leaving one
out has a closed form, y_i - (A^-1 y)_i / (A^-1)_ii with A = K + lambda I and K the features' inner products (Rifkin and
Lippert 2007), so one inverse tells, in a second, without a split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piggyback.errors import InputError, check_is
from piggyback.kinds import KINDS, kind_of
from piggyback.taskfile.task import TaskInfo

MOST = 1024
"""Samples that are looked at; more tell little more and cost their third power."""


@contextmanager
def head_inputs(head: nn.Module) -> Iterator[list[Any]]:
    """Give a ``with`` block a list that gets what ``head`` is called with, in the order of the calls.

    >>> head = nn.Linear(2, 1)
    >>> with head_inputs(head) as seen:
    ...     _ = head(torch.ones(3, 2))
    >>> seen[0].shape
    torch.Size([3, 2])
    """
    seen: list[Any] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def one_each(seen: list[Any], labels: list[Tensor]) -> bool:
    """Return whether a head was called once for every batch of labels, with a tensor of as many rows."""
    rows = [len(part) if isinstance(part, Tensor) else -1 for part in seen]
    return rows == [len(part) for part in labels]


@torch.no_grad()
def feature_skill(features: Tensor, labels: Tensor) -> float:
    """Return how far ridge regression on ``features`` gets from guessing (0) to all right (1), leaving one out.

    ``features``: (n, ...), ``labels``: int64 (n,), where guessing is always the most frequent class, or float (n, k),
    where it is the mean. Of more than ``MOST`` samples, evenly spaced ones are taken.

    >>> labels = torch.arange(40) % 2
    >>> feature_skill(labels[:, None].float() + 0.1 * torch.rand(40, 3), labels)
    1.0
    """
    chosen = torch.linspace(0, len(labels) - 1, min(len(labels), MOST)).round().long()
    x = features[chosen.to(features.device)].flatten(1).cpu().double()
    y = labels[chosen.to(labels.device)].cpu()
    wanted = y.double() if y.is_floating_point() else F.one_hot(y).double()
    guess = 0.0 if y.is_floating_point() else float(y.bincount().max()) / len(y)
    x = x - x.mean(0)
    products = x @ x.T
    ridge = products.diagonal().mean()
    if guess == 1 or not bool(ridge > 0):
        return 0.0
    inverse = torch.linalg.inv(products + ridge * torch.eye(len(y), dtype=torch.float64))
    wanted -= wanted.mean(0)
    missed = (inverse @ wanted) / inverse.diagonal()[:, None]
    if y.is_floating_point():
        spread = wanted.square().mean(0)
        explained = (1 - missed.square().mean(0) / spread)[spread > 0]
        return float(explained.clamp_min(0).mean()) if len(explained) else 0.0
    right = float(((wanted - missed).argmax(1) == y).double().mean())
    return max(0.0, (right - guess) / (1 - guess))


@torch.no_grad()
def skill_of_batches(
    model: nn.Module, head: nn.Module, batches: Iterable[Any], info: TaskInfo
) -> float:
    """Return the ``feature_skill`` of what reaches ``head`` when ``model`` runs on batches of inputs and labels.

    Raises InputError for other batches, for an iterator, which this would use up, where all labels are the same, and
    where the head is not called once for each.
    """
    check_is("batches", batches, Iterable, "pairs of inputs and labels")
    if isinstance(batches, Iterator):
        raise InputError("batches: an iterator would be used up: expected a DataLoader or a list")
    labels: list[Tensor] = []
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with head_inputs(head) as found:
            for batch in batches:
                inputs, truth = _pair(batch, info)
                model(inputs.to(device) if isinstance(inputs, Tensor) else inputs)
                labels.append(truth)
                if sum(map(len, labels)) >= MOST:
                    break
    finally:
        model.train(training)
    if not labels or not one_each(found, labels):
        raise InputError(
            f"batches: the head was called {len(found)} times for {len(labels)} batches: expected one or more, "
            "and once each with a row for every label; leave batches out"
        )
    if not all(bool(part.isfinite().all()) for part in found):
        raise InputError("batches: what reaches the head is not finite; look at the inputs")
    truths = torch.cat(labels)
    if len(truths) > 1 and bool((truths == truths[0]).all()):
        raise InputError(
            f"batches: the first {len(truths)} samples have one label: expected shuffled ones (shuffle=True)"
        )
    return feature_skill(torch.cat(found), truths)


def _pair(batch: Any, info: TaskInfo) -> tuple[Any, Tensor]:
    """A batch as inputs and labels: int64 classes, or numbers as the task's kind takes them; else InputError."""
    n = len(info.classes)
    many = info.kind in KINDS and not kind_of(info).ranked  # labels or numbers for each sample
    wanted = f"(n, {n}) of its {info.kind} task" if many else "int64 (n,) from 0"
    found = type(batch).__name__
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        inputs, labels = batch
        found = f"labels of type {type(labels).__name__}"
        if isinstance(labels, Tensor):
            found = f"labels {labels.dtype} {tuple(labels.shape)}"
            whole = labels.ndim == 1 and labels.dtype == torch.int64
            if many and tuple(labels.shape[1:]) == (n,):
                return inputs, labels.float()
            if not many and whole and not bool((labels < 0).any()):
                if (highest := int(labels.max())) >= n > 0:
                    raise InputError(
                        f"batches: label {highest}: expected 0 to {n - 1} of {n} classes"
                    )
                return inputs, labels
    raise InputError(
        f"batches: expected pairs of inputs and labels, {wanted}, found {found}; "
        "leave batches out where labels are not classes"
    )
