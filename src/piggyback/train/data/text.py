"""Texts with labels: cut into tokens once, batched with others of about their length.

TextSet    one split: classes, labels, texts, and their tokens once a tokenizer is known
by_length  the order of an epoch, fixed by (seed, epoch)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from piggyback.errors import DataError, InputError
from piggyback.texts.preprocessing import Prepares, TextPreprocessing, bad_text
from piggyback.train.data.labelled import LabelledSet
from piggyback.train.hashing import shuffled

POOL = 32
"""Batches whose texts are sorted by length together: more of them save hardly any padding."""
_STREAM = 1 << 33  # keeps the batches' order apart from the texts', which shares seed and epoch
_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class TextSet(LabelledSet):
    """Texts of one split with their labels.

    >>> TextSet(("bad", "good"), torch.tensor([1, 0]), ("a joy", "a bore"))
    TextSet(2 texts of 2 classes)
    """

    texts: Sequence[str] = ()
    """One per label."""
    tokens: tuple[NDArray[np.int32], ...] | None = None
    """Of each text, int32 (length,), once they are known."""
    view: TextPreprocessing | None = None
    """What they were cut with."""

    what: ClassVar[str] = "texts"

    def __post_init__(self) -> None:
        if (row := bad_text(self.texts)) is not None:
            text = self.texts[row]
            found = "empty" if isinstance(text, str) else f"of type {type(text).__name__}"
            raise DataError(f"text {row} is {found}: expected a text with a letter in it")
        self.check_labels(len(self.texts))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} texts of {len(self.classes)} classes)"

    def in_memory(self, preprocessing: Prepares) -> Self:
        """Return the set with its tokens; InputError for the preprocessing of images."""
        if not isinstance(preprocessing, TextPreprocessing):
            raise InputError(
                "texts for a backbone that sees images: expected one that reads texts, such as "
                "transformers:NAME or minilm_l6"
            )
        if self.tokens is not None and self.view == preprocessing:
            return self
        reader, rows = preprocessing.bound_reader(), []
        for start in range(0, len(self.texts), _AT_ONCE):
            part = self.texts[start : start + _AT_ONCE]
            cut = reader.encode(part, preprocessing.max_length)[0]
            rows += [np.array(row, dtype=np.int32) for row in cut]
        return replace(self, tokens=tuple(rows), view=preprocessing)

    def longer_than(self, preprocessing: TextPreprocessing) -> int:
        """Return how many texts have more tokens than ``preprocessing`` keeps."""
        reader = preprocessing.bound_reader()
        starts = range(0, len(self.texts), _AT_ONCE)
        parts = [self.texts[start : start + _AT_ONCE] for start in starts]
        return sum(reader.encode(part, preprocessing.max_length)[1] for part in parts)

    def batch(self, indices: Tensor) -> Tensor:
        """Return the tokens of the texts at ``indices``, int64 (n, tokens of the longest), the rest padded."""
        if self.tokens is None or self.view is None:
            raise InputError("texts without tokens: expected a set made by in_memory()")
        rows = [torch.from_numpy(self.tokens[at]).long() for at in indices.tolist()]
        if not rows:
            return torch.empty(0, 0, dtype=torch.int64)
        return self.view.collate(rows)

    def order(self, seed: int, epoch: int, batch_size: int, drawn: Tensor | None = None) -> Tensor:
        """Return the order in which an epoch takes its texts, or those ``drawn`` for it, see ``by_length``."""
        if self.tokens is None:
            raise InputError("texts without tokens: expected a set made by in_memory()")
        chosen = torch.arange(len(self)) if drawn is None else drawn
        lengths = [len(self.tokens[i]) for i in chosen.tolist()]
        return chosen[by_length(lengths, seed, epoch, batch_size)]

    def subset(self, indices: Tensor) -> Self:
        """Return the set with only the texts at ``indices``, in that order."""
        at = indices.tolist()
        tokens = None if self.tokens is None else tuple([self.tokens[i] for i in at])
        texts = tuple([self.texts[i] for i in at])
        return replace(self, labels=self.labels_at(indices), texts=texts, tokens=tokens)

    def content_keys(self) -> NDArray[np.uint64]:
        """Return a number for each text that follows from its letters alone: uint64 (n,)."""
        try:
            found = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in self.texts]
        except UnicodeEncodeError as error:
            raise DataError(
                f"text {error.object!r:.80} holds a lone surrogate, which is no character: expected UTF-8"
            ) from error
        return np.frombuffer(b"".join(found), dtype="<u8").copy()

    def digest(self) -> str:
        """Return a SHA-256 (hex) over labels and texts."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        digest.update(self.labels.numpy().tobytes())
        for text in self.texts:
            digest.update(f"{text}\0".encode())
        return digest.hexdigest()


def by_length(lengths: Sequence[int], seed: int, epoch: int, batch_size: int) -> Tensor:
    """Return an order of samples, int64 (n,), in which every ``batch_size`` of them have about one length.

    The samples are shuffled, ``POOL`` batches of them at a time are sorted by length, and the batches are shuffled:
    all by (seed, epoch) alone. What is left over when batches are cut comes last.

    >>> lengths = [1, 9] * 8
    >>> order = by_length(lengths, seed=0, epoch=0, batch_size=4)
    >>> [sorted({lengths[i] for i in batch.tolist()}) for batch in order.split(4)]
    [[1], [9], [9], [1]]
    """
    order = shuffled(seed, epoch, len(lengths))
    whole = len(lengths) // batch_size * batch_size
    held = torch.tensor(lengths)[order[:whole]]
    parts = [
        start + held[start : start + POOL * batch_size].argsort(stable=True)
        for start in range(0, whole, POOL * batch_size)
    ]
    if not parts:
        return order
    batches = order[torch.cat(parts)].view(-1, batch_size)
    places = shuffled(seed, epoch + _STREAM, len(batches))
    return torch.cat([batches[places].flatten(), order[whole:]])
