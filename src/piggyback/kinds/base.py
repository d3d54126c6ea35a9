"""What every kind of task can do: from labels to a loss, from outputs to a score and to answers."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from piggyback.errors import InputError
from piggyback.kinds.calibration import AbstainAt
from piggyback.schemas import RankedClass, Said
from piggyback.taskfile.task import TaskInfo
from piggyback.texts.preprocessing import Prepares

Reduce = Callable[[Tensor], Tensor]
"""Takes a process's tensor and returns that of all processes: their sum, or their rows one after another."""


@dataclass(frozen=True)
class Loss:
    """How a training loss is computed, besides the kind's own definition.

    >>> Loss(smoothing=0.1).name
    'auto'
    """

    name: str = "auto"
    """One of the names in ``Kind.losses_known``; "auto" is the kind's usual one."""
    smoothing: float = 0.0
    """Share of the target probability that is spread over all classes, where there is one class for each label."""
    weights: Tensor | None = None
    """float32, (classes,): of each class, or of each label's positives; None for 1."""
    gamma: float = 2.0
    """Of focal and asymmetric loss: how little examples count that are right already."""
    function: Callable[[Tensor, Tensor], Tensor] | None = None
    """A loss of the user's own, which training takes in place of the kind's; ``name`` is what it is called."""


class Score(abc.ABC):
    """How a network did on a set of samples."""

    kind: str
    classes: tuple[str, ...]
    loss: float
    """Mean over the samples, or over pixels, without label smoothing."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """Number of samples, or of pixels that are not void."""

    @property
    @abc.abstractmethod
    def accuracy(self) -> float:
        """The kind's score in percent, higher is better: accuracy, mean average precision, R2, mean IoU."""

    @abc.abstractmethod
    def numbers(self) -> Mapping[str, float]:
        """Return what ``evaluate`` shows, by name, plain JSON; the score first."""

    @abc.abstractmethod
    def summary(self, samples: str) -> str:
        """Return the score on ``samples``, such as "500 texts", in a sentence."""

    @abc.abstractmethod
    def by_class(self) -> tuple[tuple[str, ...], Mapping[str, Sequence[float | None]]]:
        """Return titles, and a row of numbers for each class or output; None where a number is not defined."""


class Meter(Protocol):
    """Takes batches of outputs and targets, and ends in a score."""

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch, on the network's device."""

    def end(self, summed: Reduce, gathered: Reduce) -> Score:
        """Return the score over all processes."""


@dataclass(frozen=True)
class Kind(abc.ABC):
    """What the outputs of a task mean; made by ``kind_of``. Its methods take and return tensors."""

    classes: tuple[str, ...]
    """Names of classes, labels or numbers, in the order of the head's outputs."""
    units: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    scaling: tuple[tuple[float, float], ...] = ()
    calibration: tuple[float, ...] = ()
    preprocessing: Prepares | None = None
    """Of the task's inputs, for answers about parts of them."""

    name: ClassVar[str]
    noun: ClassVar[str] = "class"
    """What one of ``classes`` is called."""
    losses_known: ClassVar[tuple[str, ...]] = ("auto",)
    slack: ClassVar[float] = 1.0
    """Masks have collapsed where the loss is further than this part of the way from the head's to that of guessing."""
    per_pixel: ClassVar[bool] = False
    """Whether an output has two more dimensions than the classes."""
    per_token: ClassVar[bool] = False
    """Whether an output has one more dimension than the classes, the tokens of a text."""

    ranked: ClassVar[bool] = False
    """Whether outputs are only compared with each other: a small error of each changes next to no answer."""

    one_each: ClassVar[bool] = False
    """Whether a sample has one class: what balanced sampling, mixup, CutMix and ``abstain_at`` need."""
    fits: ClassVar[bool] = False
    """Whether something of the file is fitted on val: see ``fitted``."""

    @property
    def dimensions(self) -> int:
        """Of a batch of outputs: (n, classes), (n, tokens, classes) or (n, classes, h, w)."""
        return 2 + self.per_token + 2 * self.per_pixel

    def fitted(
        self, info: TaskInfo, outputs: Tensor, targets: Tensor, at: AbstainAt | None = None
    ) -> tuple[TaskInfo, str]:
        """Return ``info`` with what follows from the best epoch's outputs on val, and a line on it for people."""
        return info, ""

    def targets(self, labels: Tensor) -> Tensor:
        """Return labels as the loss takes them."""
        return labels

    def checked(self, output: Any) -> Tensor:
        """Return a network's output as float32, as ``answers`` takes it; InputError for anything else."""
        return logits_of(output, len(self.classes)).float()

    def outputs(self, output: Any, targets: Tensor) -> Tensor:
        """Return a network's output as float32 (n, classes, ...); InputError for anything else."""
        return self.checked(output)

    def rows(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what reaches the head, (n, ...), and targets, as a row for each label."""
        return features, targets

    def kept(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what a report needs of each sample, (n, ...): by default its ``values``."""
        return self.values(outputs).double()

    def called(self, outputs: Tensor, targets: Tensor) -> list[list[int]]:
        """Return the class that each part of a sample with a label is called; none for kinds of whole samples."""
        return []

    @abc.abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        """Return the sum of the losses of all samples, or of all pixels."""

    def training_losses(self, outputs: Tensor, targets: Tensor, how: Loss) -> Tensor:
        """Return the sum that training lowers: ``losses``, or what the user's own function says.

        Raises InputError unless that returns the mean, or a loss for each sample (n,), or for each pixel of a map.
        """
        if how.function is None:
            return self.losses(outputs, targets, how)
        found, each = how.function(outputs, targets), targets.shape[: 3 if self.per_pixel else 1]
        if not isinstance(found, Tensor) or found.shape not in ((), each):
            said = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"loss {how.name} returned {said}: expected a tensor () or {tuple(each)}"
            )
        return found.sum() if found.ndim else found * self.count(targets)

    def count(self, targets: Tensor) -> Tensor:
        """Return how many labels the loss is the sum over, int64 ()."""
        return torch.tensor(len(targets), device=targets.device)

    @abc.abstractmethod
    def right(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how many of ``count`` are right, as a number that training shows; () of any dtype."""

    def meter(self, device: torch.device) -> Meter:
        """Return a meter for outputs on ``device``."""
        return Collected(self)

    @abc.abstractmethod
    def score(self, outputs: Tensor, targets: Tensor, loss: float) -> Score:
        """Return the score of all outputs, float32 (n, classes), and targets on the CPU, and their mean loss."""

    @abc.abstractmethod
    def values(self, outputs: Tensor) -> Tensor:
        """Return what outputs (n, classes) mean: probabilities, or numbers in their units."""

    @abc.abstractmethod
    def answers(self, outputs: Tensor, top: int, inputs: Sequence[Any] = ()) -> list[Said]:
        """Return what is said of each sample, for outputs float32 (n, classes, ...) of the network, on any device.

        ``inputs`` are what kinds need that answer for parts of a sample: the texts, or frames of images.
        """

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return how sure each row of outputs is, float32 (n,) in [0, 1]; 0 for kinds that cannot tell."""
        return outputs.new_zeros(len(outputs))

    def balanced(self, labels: Tensor) -> Tensor | None:
        """Return the weights by which rare classes or labels count as much as common ones; None without such."""
        return None

    def scaled(self, weights: Tensor, labels: Tensor) -> Tensor:
        """Return given weights of classes or labels as the loss takes them."""
        return weights

    @abc.abstractmethod
    def guess(self, targets: Tensor) -> float:
        """Return the mean loss of the best answer that is the same for all samples."""

    def skill_targets(self, targets: Tensor) -> Tensor | None:
        """Return the numbers, float (n, k), that a linear regression on features is asked for; None for classes."""
        return None

    def finished(self, network: nn.Module) -> nn.Module:
        """Return a baked network whose outputs mean something without this library: what is exported."""
        return network


def logits_of(output: Any, classes: int, size: Sequence[int] = ()) -> Tensor:
    """Return a network's output as logits (n, classes), or (n, classes, *size) of a segmentation.

    Raises InputError for anything else.
    """
    shape = (classes, *size)
    if not isinstance(output, Tensor) or tuple(output.shape[1:]) != shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        wanted = f"(n, {', '.join(map(str, shape))})"
        advice = "; for label maps take a backbone 'segmentation:NAME'" if size else ""
        raise InputError(f"the network returned {found}: expected logits of shape {wanted}{advice}")
    return output


def likeliest(names: Sequence[str], chances: Tensor, top: int) -> list[tuple[RankedClass, ...]]:
    """Return the ``top`` likeliest of ``names`` in each row of ``chances`` (n, names), likeliest first."""
    values, order = chances.topk(min(top, chances.shape[1]), dim=1)
    return [
        tuple([RankedClass(name=names[i], probability=p) for i, p in zip(*each, strict=True)])
        for each in zip(order.tolist(), values.tolist(), strict=True)
    ]


class Collected(Meter):
    """A meter that keeps all outputs and targets, float32 on the CPU, for what no sum is enough for."""

    outputs: Tensor
    """Of all processes, when they have come to the end, as ``targets``."""
    targets: Tensor

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.loss = torch.zeros(1)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.loss += self.kind.losses(outputs, targets, Loss()).detach().cpu()
        self.parts.append((outputs.detach().cpu(), targets.detach().cpu()))

    def end(self, summed: Reduce, gathered: Reduce) -> Score:
        """Return the score of everything that all processes kept."""
        empty = torch.zeros(0, len(self.kind.classes))
        parts = self.parts or [(empty, empty)]
        self.outputs = gathered(torch.cat([out for out, _ in parts]))
        self.targets = gathered(torch.cat([true for _, true in parts]))
        loss = float(summed(self.loss)) / max(len(self.outputs), 1)
        return self.kind.score(self.outputs, self.targets, loss)
