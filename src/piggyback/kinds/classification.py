"""Classification: one class for each image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from piggyback.errors import InputError
from piggyback.kinds.base import Kind, Loss, Meter, Reduce, Score, likeliest
from piggyback.kinds.calibration import FEWEST, AbstainAt, fit_temperature, threshold_for
from piggyback.schemas import Said
from piggyback.taskfile.task import TaskInfo


@dataclass(frozen=True, eq=False)
class Measured(Score):
    """How a network did on a set of images."""

    classes: tuple[str, ...]
    confusion: Tensor
    """int64, (classes, classes): images, or pixels that are not void, of class i called class j."""
    loss: float
    """Mean cross-entropy of an image, or of a pixel, without label smoothing."""
    kind: str = "classification"

    @property
    def count(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Percent: of the images called right; of a segmentation, the mean IoU."""
        return self.right if self.kind == "classification" else self.mean_iou

    @property
    def right(self) -> float:
        """Percent of the images, or of the pixels, called right."""
        return 100 * int(self.confusion.diagonal().sum()) / max(self.count, 1)

    @property
    def mean_iou(self) -> float:
        """Percent: the mean of ``per_class_iou`` over the classes that have one."""
        found = [iou for iou in self.per_class_iou().values() if iou is not None]
        return sum(found) / max(len(found), 1)

    def per_class_iou(self) -> dict[str, float | None]:
        """Return each class's intersection over union in percent.

        That is right / (truth + predicted - right); None for a class in neither truth nor prediction.
        """
        right = self.confusion.diagonal()
        return self._percent(self.confusion.sum(0) + self.confusion.sum(1) - right)

    def per_class(self) -> dict[str, float | None]:
        """Return the percent called right of each class; None for a class without images."""
        return self._percent(self.confusion.sum(1))

    def numbers(self) -> Mapping[str, float]:
        if self.kind == "classification":
            return {"accuracy": self.right}
        return {"mean_iou": self.mean_iou, "pixel_accuracy": self.right}

    def summary(self, samples: str) -> str:
        if self.kind == "classification":
            return f"{self.right:.2f}% of {samples} right"
        return f"mean IoU {self.mean_iou:.2f}%, {self.right:.2f}% of pixels right, in {samples}"

    def by_class(self) -> tuple[tuple[str, ...], Mapping[str, Sequence[float | None]]]:
        """Return images and accuracy of each class, or pixels and IoU."""
        pixels = self.kind != "classification"
        titles = ("pixels", "IoU (%)") if pixels else ("images", "accuracy (%)")
        values = self.per_class_iou() if pixels else self.per_class()
        counts = self.confusion.sum(1).tolist()
        rows = {n: (c, v) for (n, v), c in zip(values.items(), counts, strict=True)}
        return titles, rows

    def _percent(self, totals: Tensor) -> dict[str, float | None]:
        """What is right of each class, in percent of its total."""
        triples = zip(
            self.classes, self.confusion.diagonal().tolist(), totals.tolist(), strict=True
        )
        return {name: 100 * hits / total if total else None for name, hits, total in triples}


class ConfusionMeter(Meter):
    """Counts which class was called which, and adds up the loss."""

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.kind, self.n = kind, len(kind.classes)
        self.confusion = torch.zeros(self.n * self.n, dtype=torch.int64, device=device)
        self.losses = torch.zeros(1, device=device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch; targets below 0 are left out."""
        self.losses += self.kind.losses(outputs, targets, Loss())
        cells = (targets * self.n + outputs.argmax(1))[targets >= 0]
        self.confusion += torch.bincount(cells, minlength=self.n * self.n)

    def end(self, summed: Reduce, gathered: Reduce) -> Measured:
        matrix = summed(self.confusion).view(self.n, self.n).cpu()
        loss = summed(self.losses).item() / max(int(matrix.sum()), 1)
        return Measured(self.kind.classes, matrix, loss, self.kind.name)


class Classification(Kind):
    """One class for each image; outputs are logits."""

    name = "classification"
    ranked = True
    slack = 0.5
    losses_known: ClassVar[tuple[str, ...]] = ("auto", "focal")
    fits = True
    one_each = True

    def tempered(self, outputs: Tensor) -> Tensor:
        """Return logits whose probabilities are as often right as they say: divided by the temperature."""
        return outputs / self.calibration[0] if self.calibration else outputs

    def values(self, outputs: Tensor) -> Tensor:
        return self.tempered(outputs).softmax(1)

    def fitted(
        self, info: TaskInfo, outputs: Tensor, targets: Tensor, at: AbstainAt | None = None
    ) -> tuple[TaskInfo, str]:
        """Return ``info`` with a temperature and, for a target ``at``, the confidence that reaches it on val."""
        if (count := len(targets)) < FEWEST:
            asked = f", nor a confidence for {at}" * (at is not None)
            return (
                info,
                f"no temperature was fitted{asked}: {count} val samples, expected {FEWEST} or more",
            )
        temperature, least = fit_temperature(outputs, targets), 0.0
        line = f"temperature {temperature:.2f}, fitted on {count} val samples"
        if at is not None:
            sure = confidence(outputs / temperature)
            found = threshold_for(sure, outputs.argmax(1) == targets, at)
            least = found or 0.0
            given = 100 * float((sure >= least).float().mean())
            line += f"; no confidence reaches {at} on val: no answer will be marked" * (
                found is None
            )
            line += f"; {at} from confidence {least:.3f}: {given:.1f}% of val answered" * (
                found is not None
            )
        return replace(info, calibration=(temperature, least)), line

    def balanced(self, labels: Tensor) -> Tensor | None:
        """Return for each class images / (classes * images of it), so that the mean over all images is 1."""
        counts = torch.bincount(labels, minlength=len(self.classes)).float()
        return len(labels) / (len(self.classes) * counts.clamp_min(1))

    def scaled(self, weights: Tensor, labels: Tensor) -> Tensor:
        """Return given weights of classes, scaled so that the mean over all images is 1."""
        return weights / weights[labels].mean()

    def losses(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        """Return the sum of cross-entropies, or of focal losses (Lin et al. 2017)."""
        if how.name == "focal":
            log_p = outputs.log_softmax(1)
            own = log_p.gather(1, targets[:, None])[:, 0]
            weight = 1.0 if how.weights is None else how.weights[targets]
            return (-weight * (1 - own.exp()) ** how.gamma * own).sum()
        return F.cross_entropy(
            self.tempered(outputs),
            targets,
            how.weights,
            reduction="sum",
            label_smoothing=how.smoothing,
        )

    def count(self, targets: Tensor) -> Tensor:
        """Return the number of labels; those below 0 do not count."""
        return (targets >= 0).sum()

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).sum()

    def meter(self, device: torch.device) -> Meter:
        return ConfusionMeter(self, device)

    def score(self, outputs: Tensor, targets: Tensor, loss: float) -> Measured:
        n = len(self.classes)
        confusion = torch.bincount(targets * n + outputs.argmax(1), minlength=n * n).view(n, n)
        return Measured(self.classes, confusion, loss)

    def answers(self, outputs: Tensor, top: int, inputs: Sequence[Any] = ()) -> list[Said]:
        """Return the ``top`` likeliest classes of each image, and how sure the task is."""
        names = self.classes or tuple(map(str, range(outputs.shape[1])))
        rankings, sure = (
            likeliest(names, self.values(outputs), top),
            self.confidence(outputs).tolist(),
        )
        least = self.calibration[1] if self.calibration else 0.0
        return [
            Said(ranking=ranking, confidence=one, abstained=one < least if least else None)
            for ranking, one in zip(rankings, sure, strict=True)
        ]

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return 1 - entropy / log(classes) of each row; 0 for a task of one class."""
        if outputs.shape[1] < 2:
            return outputs.new_zeros(len(outputs))
        return confidence(self.tempered(outputs))

    def guess(self, targets: Tensor) -> float:
        """Return the log of the number of classes."""
        return math.log(len(self.classes))


def confidence(logits: Tensor) -> Tensor:
    """Return how sure each row of ``logits`` (batch, classes) is: 1 for one certain class, 0 for a uniform guess.

    >>> confidence(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
    tensor([0., 1.])
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError(
            "inferring the task needs outputs of shape (batch, classes >= 2), "
            f"found {tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__}"
        )
    entropy: Tensor = torch.special.entr(logits.float().softmax(1)).sum(1)
    return (1 - entropy / math.log(logits.shape[1])).clamp(0, 1)
