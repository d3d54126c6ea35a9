"""A task's answers to labelled images, collected for a report while they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piggyback.kinds import kind_of
from piggyback.kinds.base import Kind, Meter, Reduce, Score
from piggyback.model.multitask import MultiTaskModel
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import Split
from piggyback.train.data.tagged import TaggedSet
from piggyback.train.evaluation import evaluate, prepared
from piggyback.train.report import Outcome


class _Kept(Meter):
    """The kind's own meter, and what it keeps of every sample: answers, or counts where they have many parts."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.kind, self.own = kind, kind.meter(device)
        self.parts, self.called = list[Tensor](), list[list[int]]()

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.own.add(outputs, targets)
        self.parts.append(self.kind.kept(outputs, targets).cpu())
        self.called += self.kind.called(outputs, targets)

    def end(self, summed: Reduce, gathered: Reduce) -> Score:
        return self.own.end(summed, gathered)


def outcome_of(
    model: MultiTaskModel, task: str, images: Split, *, batch_size: int = 64, workers: int = 2
) -> tuple[Score, Outcome]:
    """Return how ``task`` does on ``images``, as ``evaluate``, and its answers in their order; on one process."""
    info = model.get_task(task).info
    if isinstance(images, LabelledSet):
        images = images.relabelled(info.classes, info.units)
    if isinstance(images, TaggedSet):
        images = images.in_memory(prepared(model.get_task(task), images.kind))
    kind = kind_of(info)
    kept = _Kept(kind, next(model.parameters()).device)
    score = evaluate(model, task, images, batch_size=batch_size, workers=workers, meter=kept)
    found = torch.cat(kept.parts).numpy()
    if isinstance(images, LabelledSet) and not kind.per_token:
        truth, answers = images.relabelled(kind.classes).labels.numpy(), found
    else:
        truth, answers = found, found.reshape(len(found), -1)[:, :0].astype(float)
    least = kind.calibration[1] if kind.calibration else 0.0
    outcome = Outcome(
        task, kind.name, kind.classes, answers, truth, kind.units, kind.thresholds, least
    )
    if isinstance(images, TaggedSet) and images.places is not None:
        outcome = replace(outcome, tags=_tags(images, images.places, kept.called))
    return score, outcome


def _tags(
    texts: TaggedSet, places: Sequence[NDArray[np.int32]], called: Sequence[Sequence[int]]
) -> list[tuple[list[str], list[str]]]:
    """Of each text, the tags of its words and what they were called."""
    found, parts = [], torch.split(texts.labels, texts.lengths)
    for truth, at, given in zip(parts, places, map(iter, called), strict=True):
        said = [texts.classes[next(given)] if place >= 0 else "O" for place in at]
        found.append(([texts.classes[tag] for tag in truth.tolist()], said))
    return found
