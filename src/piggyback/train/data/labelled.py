"""What sets of labelled samples have in common: class names, labels, and how these are checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from piggyback.errors import DataError


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Samples with a class each; ``ImageSet`` and ``TextSet`` have the samples."""

    kind: ClassVar[str] = "classification"
    what: ClassVar[str] = "images"
    """What the samples are, for people."""

    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    labels: Tensor
    """int64, (n,)."""

    def check_labels(self, n: int) -> None:
        """Raise DataError where labels do not fit ``n`` samples and the classes."""
        most, one = len(self.classes), self.labels.shape == (n,)
        check_tensor(self.labels, "labels", one, torch.int64, f"({n},), one per {self.what[:-1]}")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < most:
            raise DataError(
                f"labels from {int(self.labels.min())} to {int(self.labels.max())}: expected "
                f"0 to {most - 1}, an index into the {most} classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> list[int]:
        """Return the number of samples of each class."""
        counted: list[int] = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return counted

    def targets(self, indices: Tensor, preprocessing: object) -> Tensor:
        """Return the labels at ``indices``, int64 (n,)."""
        return self.labels[indices]

    def relabelled(self, classes: Sequence[str]) -> Self:
        """Return the set with its labels as indices into ``classes``; DataError where one of its own is not there."""
        if unknown := set(self.classes) - set(classes):
            raise DataError(
                f"classes of the {self.what} differ from the task's: unexpected {min(unknown)!r}: expected some of "
                f"{', '.join(map(repr, list(classes)[:5]))}{', ...' if len(classes) > 5 else ''}"
            )
        places = torch.tensor([list(classes).index(name) for name in self.classes])
        return replace(self, classes=tuple(classes), labels=places[self.labels])


def check_tensor(tensor: Tensor, what: str, good: bool, dtype: torch.dtype, shape: str) -> None:
    """Raise DataError where ``tensor`` is not ``good``, or not of type ``dtype``; ``shape`` says what was expected."""
    if tensor.dtype != dtype or not good:
        kind = str(dtype).removeprefix("torch.")
        raise DataError(f"{what} {tensor.dtype} {tuple(tensor.shape)}: expected {kind} {shape}")
