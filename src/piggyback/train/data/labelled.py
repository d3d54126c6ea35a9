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
    """int64 (n,), classification, or (words,), tokens; bool (n, labels), multilabel; float32 (n, k), regression."""
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

    def labels_at(self, indices: Tensor) -> Tensor:
        """Return the labels of the samples at ``indices``, as ``labels`` has them."""
        return self.labels[indices]

    def targets(self, indices: Tensor, preprocessing: object) -> Tensor:
        """Return what a batch of the samples at ``indices`` has as labels: by default these themselves."""
        return self.labels_at(indices)

    def relabelled(self, classes: Sequence[str], units: Sequence[str] = ()) -> Self:
        """Return the set with its labels as indices into ``classes``; DataError where one of its own is not there.

        ``units`` are those of the classes, if known: numbers in other units are an error, too.
        """
        if sorted(self.classes) != sorted(classes):  # accents may be written in two ways
            theirs = {unicodedata.normalize("NFC", name): name for name in classes}
            own = [theirs.get(unicodedata.normalize("NFC", name), name) for name in self.classes]
            if tuple(own) != self.classes:
                return replace(self, classes=tuple(own)).relabelled(classes, units)
        if unknown := set(self.classes) - set(classes):
            raise DataError(
                f"classes of the {self.what} differ from the task's: unexpected {min(unknown)!r}: expected some of "
                f"{', '.join(map(repr, list(classes)[:5]))}{', ...' if len(classes) > 5 else ''}"
            )
        own_units = dict(zip(self.classes, self.units, strict=bool(self.units)))
        for name, unit in zip(classes, units, strict=bool(units)):
            if (found := own_units.get(name, unit)) != unit:
                raise DataError(
                    f"{name!r} is in {found or 'no unit'}: expected {unit or 'no unit'}, as the task has it; convert it"
                )
        if self.labels.ndim == 2:
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


def as_tensor(values: Any, what: str) -> Tensor:
    """Return a tensor, or numbers in an array or a list, as a tensor; DataError, naming ``what``, for anything else.

    >>> as_tensor(np.array([1, 2], dtype=">i4"), "labels")
    tensor([1, 2], dtype=torch.int32)
    """
    if isinstance(values, Tensor):
        return values
    try:
        found = np.asarray(values if isinstance(values, (np.ndarray, list, tuple)) else "")
    except ValueError as error:
        raise DataError(f"{what}: expected rows of one length ({error})") from error
    if found.dtype.kind not in "biuf":
        raise DataError(f"{what} of type {type(values).__name__}: expected a tensor or numbers")
    return torch.from_numpy(np.require(found, found.dtype.newbyteorder("="), ["C", "W"]))


def _as_labels(labels: Any, what: str) -> Tensor:
    """Labels as a tensor: whole numbers as int64, others as float32."""
    found = as_tensor(labels, f"labels of the {what}")
    if found.dtype == torch.bool or found.is_complex():
        return found
    return found.float() if found.is_floating_point() else found.to(torch.int64)


def check_tensor(tensor: Tensor, what: str, good: bool, dtype: torch.dtype, shape: str) -> None:
    """Raise DataError where ``tensor`` is not ``good``, or not of type ``dtype``; ``shape`` says what was expected."""
    if tensor.dtype != dtype or not good:
        kind = str(dtype).removeprefix("torch.")
        raise DataError(f"{what} {tensor.dtype} {tuple(tensor.shape)}: expected {kind} {shape}")
