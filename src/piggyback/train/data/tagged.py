"""Texts with a tag for each word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from piggyback.errors import InputError
from piggyback.texts.preprocessing import Prepares
from piggyback.texts.words import spaced_words
from piggyback.train.data.text import TextSet

IGNORED = -100
"""Target of tokens that no word begins with, as torch's cross-entropy has it."""


@dataclass(frozen=True, eq=False, repr=False)
class TaggedSet(TextSet):
    """Texts of one split whose words, with spaces between them, have a tag each; ``classes`` are the tags.

    ``labels`` are those of all words, int64 (words,), text after text.

    >>> TaggedSet(("B-place", "I-place", "O"), torch.tensor([2, 0, 1]), ("in New York",)).lengths
    [3]
    """

    places: tuple[NDArray[np.int32], ...] | None = None
    """Of each word's first token, int32 (words,), once tokens are known; -1 for a word that was cut off."""

    kind: ClassVar[str] = "tokens"

    @cached_property
    def lengths(self) -> list[int]:
        """Words of each text."""
        return [len(spaced_words(text)) for text in self.texts]

    def __len__(self) -> int:
        return len(self.texts)

    def check_labels(self, n: int) -> None:
        """Raise DataError where there is not a tag for each word."""
        super().check_labels(sum(self.lengths))

    def labels_at(self, indices: Tensor) -> Tensor:
        """Return the tags of the texts at ``indices``, int64 (words,)."""
        parts = torch.split(self.labels, self.lengths)
        return torch.cat([parts[at] for at in indices.tolist()] or [self.labels[:0]])

    def in_memory(self, preprocessing: Prepares) -> Self:
        """Return the set with its tokens and where words begin in them; InputError as ``TextSet``."""
        made = super().in_memory(preprocessing)
        if made is self or made.view is None:
            return self
        words = [spaced_words(text) for text in self.texts]
        _, places = made.view.aligned(self.texts, words)
        return replace(made, places=tuple([np.array(row, dtype=np.int32) for row in places]))

    def targets(self, indices: Tensor, preprocessing: object) -> Tensor:
        """Return targets of ``batch``, int64 (n, tokens): a word's tag at its first token, else ``IGNORED``."""
        if self.tokens is None or self.places is None:
            raise InputError("texts without tokens: expected a set made by in_memory()")
        rows, parts = [], torch.split(self.labels, self.lengths)
        for at in indices.tolist():
            row = torch.full((len(self.tokens[at]),), IGNORED)
            places = torch.from_numpy(self.places[at]).long()
            row[places[places >= 0]] = parts[at][places >= 0]
            rows.append(row)
        if not rows:
            return torch.empty(0, 0, dtype=torch.int64)
        return pad_sequence(rows, batch_first=True, padding_value=IGNORED)

    def subset(self, indices: Tensor) -> Self:
        """Return the set with only the texts at ``indices``, in that order."""
        places = self.places and tuple([self.places[i] for i in indices.tolist()])
        return replace(super().subset(indices), places=places)
