"""A task's answers to labelled images, collected for a report while they are measured."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.kinds import kind_of
from piggyback.kinds.base import Kind, Reduce, Score
from piggyback.model.multitask import MultiTaskModel
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.data.sets import Split
from piggyback.train.evaluation import measure, prepared, running
from piggyback.train.report import Outcome


class _Kept:
    """The kind's own meter, and every answer; of label maps, how many pixels of class i were called class j."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.kind, self.own = kind, kind.meter(device)
        self.parts = list[Tensor]()

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Keep a batch."""
        self.own.add(outputs, targets)
        if not self.kind.per_pixel:
            self.parts.append(self.kind.values(outputs).double().cpu())
            return
        n, k = len(outputs), len(self.kind.classes)
        images = torch.arange(n, device=targets.device).view(-1, 1, 1)
        cells = ((images * k + targets) * k + outputs.argmax(1))[targets >= 0]
        self.parts.append(torch.bincount(cells, minlength=n * k * k).view(n, k, k).cpu())

    def end(self, summed: Reduce, gathered: Reduce) -> Score:
        """Return the kind's score."""
        return self.own.end(summed, gathered)


def outcome_of(
    model: MultiTaskModel, task: str, images: Split, *, batch_size: int = 64, workers: int = 2
) -> tuple[Score, Outcome]:
    """Return how ``task`` does on ``images``, as ``evaluate``, and its answers in their order; on one process."""
    info = model.get_task(task).info
    if isinstance(images, LabelledSet):
        images = images.relabelled(info.classes)
    kind, preprocessing = kind_of(info), prepared(model.get_task(task), images.kind)
    with running(model) as device:
        kept = _Kept(kind, device)
        score = measure(
            lambda x: model(x, task=task),
            images,
            preprocessing,
            kind,
            device=device,
            meter=kept,
            batch_size=batch_size,
            workers=workers,
        )
    found = torch.cat(kept.parts).numpy()
    if isinstance(images, LabelledSet):
        truth, answers = images.labels.numpy(), found
    else:
        truth, answers = found, found.reshape(len(found), -1)[:, :0].astype(float)
    least = kind.calibration[1] if kind.calibration else 0.0
    outcome = Outcome(
        task, kind.name, kind.classes, answers, truth, kind.units, kind.thresholds, least
    )
    return score, outcome
