"""Multilabel: any number of labels for each image, none included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from piggyback.kinds import metrics
from piggyback.kinds.base import Kind, Loss, Score, likeliest
from piggyback.kinds.calibration import AbstainAt
from piggyback.schemas import Said
from piggyback.taskfile.task import TaskInfo

THRESHOLD = 0.5
"""Probability from which a label is given, where a task's file says nothing else."""


@dataclass(frozen=True, eq=False)
class MeasuredLabels(Score):
    """How a network did on images with several labels each."""

    classes: tuple[str, ...]
    outputs: Tensor
    """float32, (n, labels): logits."""
    targets: Tensor
    """float32, (n, labels): 1 where an image has the label."""
    loss: float
    """Mean binary cross-entropy of an image's labels."""
    thresholds: tuple[float, ...]
    kind: str = "multilabel"

    @property
    def count(self) -> int:
        return len(self.targets)

    @property
    def accuracy(self) -> float:
        """Percent: the mean of the labels' average precisions; of labels that some images have."""
        found = [value for value in self.precisions if value is not None]
        return sum(found) / max(len(found), 1)

    @cached_property
    def precisions(self) -> list[float | None]:
        """Average precision of each label in percent; None for one that no image has."""
        columns = zip(self.outputs.T.numpy(), self.targets.T.bool().numpy(), strict=True)
        found = [metrics.average_precision(scores, truth) for scores, truth in columns]
        return [None if math.isnan(value) else 100 * value for value in found]

    def numbers(self) -> Mapping[str, float]:
        """Return mean average precision, F1 over all labels together, images with every label right; in percent."""
        given = self._given()
        hits, truth = (given * self.targets).sum(), self.targets.sum()
        total = float(given.sum() + truth)
        return {
            "mean_average_precision": self.accuracy,
            "f1": 100 * 2 * float(hits) / total if total else 0.0,
            "all_right": 100 * float((given == self.targets).all(1).float().mean()),
        }

    def summary(self, samples: str) -> str:
        found = self.numbers()
        return (
            f"mean average precision {self.accuracy:.2f}%, F1 {found['f1']:.2f}%, "
            f"every label right in {found['all_right']:.2f}% of {samples}"
        )

    def by_class(self) -> tuple[tuple[str, ...], Mapping[str, Sequence[float | None]]]:
        """Return images that have it, average precision, precision, recall and threshold of each label."""
        given, truth = self._given(), self.targets
        hits, found, there = (given * truth).sum(0), given.sum(0), truth.sum(0)
        titles = ("images", "AP (%)", "precision (%)", "recall (%)", "threshold")
        rows = {}
        for i, name in enumerate(self.classes):
            precision = 100 * float(hits[i] / found[i]) if found[i] else None
            recall = 100 * float(hits[i] / there[i]) if there[i] else None
            row = (int(there[i]), self.precisions[i], precision, recall, self.thresholds[i])
            rows[name] = row
        return titles, rows

    def _given(self) -> Tensor:
        return (self.outputs.sigmoid() >= torch.tensor(self.thresholds)).float()


class Multilabel(Kind):
    """Any number of labels for each image; outputs are a logit for each label, labels bool (n, labels)."""

    name = "multilabel"
    noun = "label"
    losses_known = ("auto", "focal", "asymmetric")
    fits = True

    def fitted(
        self, info: TaskInfo, outputs: Tensor, targets: Tensor, at: AbstainAt | None = None
    ) -> tuple[TaskInfo, str]:
        """Return ``info`` with the thresholds that are best on val."""
        return replace(info, thresholds=best_thresholds(outputs, targets)), ""

    def targets(self, labels: Tensor) -> Tensor:
        """Return labels as float32, 1 where an image has one."""
        return labels.float()

    def losses(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        """Return the sum over images of their labels' mean binary cross-entropy.

        "focal": Lin et al. 2017; "asymmetric": Ridnik et al. 2021, which lets easy negatives go.
        """
        each = F.binary_cross_entropy_with_logits(
            outputs, targets, reduction="none", pos_weight=how.weights
        )
        p = outputs.sigmoid()
        if how.name == "focal":
            each = each * (p - targets).abs() ** how.gamma
        elif how.name == "asymmetric":
            shifted = (p - 0.05).clamp_min(0)
            positive = (
                targets * F.logsigmoid(outputs) * (1.0 if how.weights is None else how.weights)
            )
            negative = (
                (1 - targets) * (1 - shifted).clamp_min(1e-8).log() * shifted ** (2 * how.gamma)
            )
            each = -(positive + negative)
        return each.mean(1).sum()

    def balanced(self, labels: Tensor) -> Tensor | None:
        """Return for each label the images without it for each one with it."""
        there = labels.float().sum(0)
        return (len(labels) - there).clamp_min(1) / there.clamp_min(1)

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over images of the share of labels called right at a probability of one half."""
        return ((outputs > 0) == (targets > 0.5)).float().mean(1).sum()

    def score(self, outputs: Tensor, targets: Tensor, loss: float) -> MeasuredLabels:
        return MeasuredLabels(self.classes, outputs, targets, loss, self.held_thresholds())

    def held_thresholds(self) -> tuple[float, ...]:
        """Return the threshold of each label: of the task's file, or one half."""
        return self.thresholds or (THRESHOLD,) * len(self.classes)

    def values(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def answers(self, outputs: Tensor, top: int, inputs: Sequence[Any] = ()) -> list[Said]:
        """Return the labels that pass their threshold, the ``top`` likeliest ones, and how sure the task is."""
        chances = outputs.sigmoid()
        passed = (chances >= chances.new_tensor(self.held_thresholds())).tolist()
        rankings, sure = likeliest(self.classes, chances, top), self.confidence(outputs).tolist()
        return [
            Said(
                ranking=ranking,
                labels=tuple([n for n, yes in zip(self.classes, given, strict=True) if yes]),
                confidence=one,
            )
            for ranking, given, one in zip(rankings, passed, sure, strict=True)
        ]

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return 1 - the mean entropy of an image's labels in bits."""
        p = outputs.float().sigmoid()
        entropy = torch.special.entr(p) + torch.special.entr(1 - p)
        sure: Tensor = 1 - entropy.mean(1) / math.log(2)
        return sure.clamp(0, 1)

    def guess(self, targets: Tensor) -> float:
        """Return the mean entropy of how often each label is there."""
        p = targets.float().mean(0)
        return float((torch.special.entr(p) + torch.special.entr(1 - p)).mean())

    def skill_targets(self, targets: Tensor) -> Tensor:
        """Return 1 where an image has a label, else 0."""
        return targets.float()


def best_thresholds(outputs: Tensor, targets: Tensor) -> tuple[float, ...]:
    """Return for each label the probability from which giving it makes the largest F1: midway between two samples'.

    ``outputs``: logits (n, labels), ``targets``: 0 and 1. A label that no sample has, or all have, keeps one half.

    >>> best_thresholds(torch.tensor([[-2.0], [-1.0], [3.0]]), torch.tensor([[0.0], [1.0], [1.0]]))
    (0.1940722,)
    """
    found = []
    for scores, truth in zip(outputs.sigmoid().T, targets.T, strict=True):
        held, order = scores.sort(descending=True)
        hits, n = truth[order].cumsum(0), len(held)
        if not 0 < float(hits[-1]) < n:
            found.append(THRESHOLD)
            continue
        f1 = 2 * hits / (torch.arange(1, n + 1) + hits[-1])
        f1[:-1][held[1:] == held[:-1]] = 0  # one score, one side
        at = int(f1.argmax())
        below, above = float(held[at + 1]) if at + 1 < n else 0.0, float(held[at])
        middle = float(f"{(below + above) / 2:.7g}")
        parts = below < float(torch.tensor(middle)) <= above  # as it is compared, in float32
        found.append(middle if parts else above)
    return tuple(found)
