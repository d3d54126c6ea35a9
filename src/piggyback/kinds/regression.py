"""Regression: one number for each image, or several, with units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from piggyback.kinds.base import Kind, Loss, Score
from piggyback.schemas import Said, Value


@dataclass(frozen=True, eq=False)
class MeasuredNumbers(Score):
    """How near a network's numbers came."""

    classes: tuple[str, ...]
    outputs: Tensor
    """float32, (n, numbers), in the targets' own units."""
    targets: Tensor
    """float32, (n, numbers)."""
    loss: float
    """Mean squared error, of numbers scaled to a deviation of 1 in training."""
    spread: tuple[float, ...] = ()
    """What stands for the deviation of numbers that are all the same here."""
    units: tuple[str, ...] = ()
    kind: str = "regression"

    @property
    def count(self) -> int:
        return len(self.targets)

    @property
    def accuracy(self) -> float:
        """Percent of the variance that is explained, R2, averaged over the numbers; below 0: worse than the mean."""
        return 100 * float(self._r2().mean())

    def numbers(self) -> Mapping[str, float]:
        """Return R2 in percent, and mean absolute and root mean square error over all numbers that have one unit."""
        if len(set(self.units)) > 1:
            return {"r2": self.accuracy}
        error = self.outputs - self.targets
        return {
            "r2": self.accuracy,
            "mae": float(error.abs().mean()),
            "rmse": float(error.square().mean().sqrt()),
        }

    def summary(self, samples: str) -> str:
        unit = f" {self.units[0]}" if len(set(self.units)) == 1 and self.units[0] else ""
        alone = ""
        if len(self.classes) == 1:
            alone = f", mean absolute error {self.numbers()['mae']:.4g}{unit}"
        return f"R2 {self.accuracy:.2f}%{alone}, in {samples}"

    def by_class(self) -> tuple[tuple[str, ...], Mapping[str, Sequence[float | None]]]:
        """Return mean absolute error, root mean square error and R2 (%) of each number."""
        error = self.outputs - self.targets
        parts = (error.abs().mean(0), error.square().mean(0).sqrt(), 100 * self._r2())
        units = self.units or ("",) * len(self.classes)
        names = [f"{n} ({u})" if u else n for n, u in zip(self.classes, units, strict=True)]
        columns = zip(*[part.tolist() for part in parts], strict=True)
        return ("MAE", "RMSE", "R2 (%)"), dict(zip(names, columns, strict=True))

    def _r2(self) -> Tensor:
        error = (self.outputs - self.targets).double().square().mean(0)
        spread = self.targets.double().var(0, correction=0)
        known = torch.tensor(self.spread or (1.0,) * len(self.classes), dtype=torch.float64)
        return 1 - error / torch.where(spread > 0, spread, known.square())


class Regression(Kind):
    """Numbers; outputs are scaled: output * scale + offset is the number."""

    name = "regression"
    noun = "number"
    losses_known = ("auto", "huber", "absolute")

    def targets(self, labels: Tensor) -> Tensor:
        """Return numbers as the network gives them: less the offset, by the scale."""
        offset, scale = self._scaling(labels)
        return (labels.float() - offset) / scale

    def values(self, outputs: Tensor) -> Tensor:
        """Return the network's outputs as numbers in their units.

        >>> Regression(("height",), scaling=((1.7, 0.1),)).values(torch.tensor([[2.0]]))
        tensor([[1.9000]])
        """
        offset, scale = self._scaling(outputs)
        return outputs.float() * scale + offset

    def losses(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        """Return the sum over images of their numbers' mean squared error, Huber loss or absolute error."""
        weigh = 1.0 if how.weights is None else how.weights
        if how.name == "huber":
            each = 2 * F.huber_loss(outputs, targets, reduction="none")
        elif how.name == "absolute":
            each = (outputs - targets).abs()
        else:
            each = (outputs - targets).square()
        return (each * weigh).mean(1).sum()

    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over images of 1 - squared error: over many, the share of variance explained."""
        return (1 - (outputs - targets).square()).mean(1).sum()

    def score(self, outputs: Tensor, targets: Tensor, loss: float) -> MeasuredNumbers:
        spread = tuple(scale for _, scale in self.scaling)
        found, true = self.values(outputs), self.values(targets)
        return MeasuredNumbers(self.classes, found, true, loss, spread, self.units)

    def answers(self, outputs: Tensor, top: int, inputs: Sequence[Any] = ()) -> list[Said]:
        """Return all numbers of each image with their units."""
        units = self.units or ("",) * len(self.classes)
        return [
            Said(
                values=tuple(
                    [
                        Value(name=name, value=value, unit=unit)
                        for name, value, unit in zip(self.classes, row, units, strict=True)
                    ]
                )
            )
            for row in self.values(outputs).tolist()
        ]

    def guess(self, targets: Tensor) -> float:
        """Return the mean squared error of the mean."""
        return float(targets.float().var(0, correction=0).mean())

    def skill_targets(self, targets: Tensor) -> Tensor:
        return targets.float()

    def finished(self, network: nn.Module) -> nn.Module:
        """Return the network with its scaling behind it, so that it gives numbers in their units."""
        return nn.Sequential(network, Scaled(self)) if self.scaling else network

    def _scaling(self, like: Tensor) -> tuple[Tensor, Tensor]:
        pairs = self.scaling or ((0.0, 1.0),) * len(self.classes)
        offset, scale = torch.tensor(pairs, device=like.device).T
        return offset, scale


class Scaled(nn.Module):
    """The scaling of a regression as a layer."""

    def __init__(self, kind: Regression) -> None:
        super().__init__()
        offset, scale = torch.tensor(kind.scaling).T.contiguous()
        self.register_buffer("offset", offset)
        self.register_buffer("scale", scale)

    offset: Tensor
    scale: Tensor

    def forward(self, outputs: Tensor) -> Tensor:
        return outputs * self.scale + self.offset
