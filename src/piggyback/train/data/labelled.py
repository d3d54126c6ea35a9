"""What sets of labelled samples have in common: names, labels of each kind, and how these are checked."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from piggyback.errors import DataError

_KINDS = {
    torch.int64: "classification", torch.bool: "multilabel", torch.float32: "regression",
}  # fmt: skip
"""What labels of a type make a task."""


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Samples with a class each, several labels each, or numbers; ``ImageSet`` and ``TextSet`` have the samples."""

    what: ClassVar[str] = "images"
    """What the samples are, for people."""

    classes: tuple[str, ...]
    """Names of classes, into which a label is an index; or of labels or numbers, of which a sample has a row."""
    labels: Tensor
    """int64 (n,), classification; bool (n, labels), multilabel; or float32 (n, numbers), regression."""
    _: KW_ONLY
    units: tuple[str, ...] = ()
    """Of each number of a regression; empty where no unit is known."""

    def check_labels(self, n: int) -> None:
        """Raise DataError where labels do not fit ``n`` samples and the names."""
        object.__setattr__(self, "labels", _as_labels(self.labels, self.what))
        most, one = len(self.classes), self.what[:-1]
        if self.labels.dtype not in _KINDS or self.labels.dtype == torch.int64:
            good = self.labels.shape == (n,)
            check_tensor(self.labels, "labels", good, torch.int64, f"({n},), one per {one}")
            if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < most:
                raise DataError(
                    f"labels from {int(self.labels.min())} to {int(self.labels.max())}: expected "
                    f"0 to {most - 1}, an index into the {most} classes"
                )
            return
        good, wanted = self.labels.shape == (n, most), f"({n}, {most}), a row per {one}"
        check_tensor(self.labels, "labels", good, self.labels.dtype, wanted)
        if self.labels.is_floating_point() and not bool(self.labels.isfinite().all()):
            row = int((~self.labels.isfinite()).any(1).nonzero()[0])
            raise DataError(
                f"labels of {one} {row}: {self.labels[row].tolist()}: expected finite numbers"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kind(self) -> str:
        """What the labels are: "classification", "multilabel" or "regression", by their type."""
        return _KINDS[self.labels.dtype]

    def counts(self) -> list[int]:
        """Return the number of samples of each class, or with each label; of numbers, all samples."""
        if self.labels.is_floating_point():
            return [len(self)] * len(self.classes)
        counted = (
            self.labels.sum(0)
            if self.labels.ndim == 2
            else torch.bincount(self.labels, minlength=len(self.classes))
        )
        return [int(count) for count in counted]

    def targets(self, indices: Tensor, preprocessing: object) -> Tensor:
        """Return the labels at ``indices``, of the type and shape that ``labels`` has."""
        return self.labels[indices]

    def relabelled(self, classes: Sequence[str]) -> Self:
        """Return the set with its labels as indices into ``classes``; DataError where one of its own is not there."""
        if sorted(self.classes) != sorted(classes):  # accents may be written in two ways
            theirs = {unicodedata.normalize("NFC", name): name for name in classes}
            own = [theirs.get(unicodedata.normalize("NFC", name), name) for name in self.classes]
            if tuple(own) != self.classes:
                return replace(self, classes=tuple(own)).relabelled(classes)
        if unknown := set(self.classes) - set(classes):
            raise DataError(
                f"classes of the {self.what} differ from the task's: unexpected {min(unknown)!r}: expected some of "
                f"{', '.join(map(repr, list(classes)[:5]))}{', ...' if len(classes) > 5 else ''}"
            )
        if self.kind != "classification":
            return self._columns(classes)
        places = torch.tensor([list(classes).index(name) for name in self.classes])
        return replace(self, classes=tuple(classes), labels=places[self.labels])

    def _columns(self, classes: Sequence[str]) -> Self:
        """The set with a column for each of ``classes``: labels that are not its own no sample has; numbers all are."""
        if missing := sorted(set(classes) - set(self.classes)) * self.labels.is_floating_point():
            raise DataError(
                f"numbers of the {self.what} differ from the task's: missing {missing[0]!r}: expected "
                f"{', '.join(map(repr, classes))}"
            )
        own = {name: self.labels[:, at] for at, name in enumerate(self.classes)}
        none = torch.zeros(len(self), dtype=self.labels.dtype)
        labels = torch.stack([own.get(name, none) for name in classes], dim=1)
        units = dict(zip(self.classes, self.units, strict=bool(self.units)))
        ordered = tuple(units[name] for name in classes) if units else ()
        return replace(self, classes=tuple(classes), labels=labels, units=ordered)


def _as_labels(labels: Any, what: str) -> Tensor:
    """Labels as a tensor, whole numbers as int64; DataError for what are none."""
    if isinstance(labels, (np.ndarray, list, tuple)):
        try:
            labels = torch.from_numpy(np.array(labels))
        except (TypeError, ValueError) as error:
            raise DataError(f"labels of the {what}: expected numbers ({error})") from error
    if not isinstance(labels, Tensor):
        raise DataError(f"labels of type {type(labels).__name__}: expected a tensor")
    whole = (
        not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    )
    return (
        labels.to(torch.int64)
        if whole
        else labels.float()
        if labels.dtype == torch.float64
        else labels
    )


def check_tensor(tensor: Tensor, what: str, good: bool, dtype: torch.dtype, shape: str) -> None:
    """Raise DataError where ``tensor`` is not ``good``, or not of type ``dtype``; ``shape`` says what was expected."""
    if tensor.dtype != dtype or not good:
        kind = str(dtype).removeprefix("torch.")
        raise DataError(f"{what} {tensor.dtype} {tuple(tensor.shape)}: expected {kind} {shape}")
