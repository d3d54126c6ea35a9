"""Token classification: a tag for each word of a text, and the spans that the tags mark.

    O O B-place I-place O      outside, or the first or a further word of a span of a type

A word's tag is its first token's. Spans are counted as CoNLL-2000's script and seqeval do: an I that follows no word of
its type begins a span too, and a span is right where its words and its type are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from piggyback.errors import InputError
from piggyback.kinds.base import Loss, Meter, Reduce, Score
from piggyback.kinds.classification import Classification
from piggyback.kinds.metrics import ratios
from piggyback.schemas import Said, Span
from piggyback.texts.preprocessing import TextPreprocessing
from piggyback.texts.words import Words, words_of

_MARKS = ("B-", "I-")
_ADVICE = (
    "; for tags of words take an encoder of texts, such as minilm_l6 or tokens:transformers:NAME"
)


def spans_of(tags: Iterable[str]) -> list[tuple[int, int, str]]:
    """Return start, end (outside) and type of each span that tags mark.

    >>> spans_of(["B-place", "I-place", "O", "I-name", "B-name", "I-place"])
    [(0, 2, 'place'), (3, 4, 'name'), (4, 5, 'name'), (5, 6, 'place')]
    """
    found: list[tuple[int, int, str]] = []
    before = None
    for at, tag in enumerate(tags):
        what = tag[2:] if tag.startswith(_MARKS) else None
        if what is not None and what == before and tag[0] == "I":
            found[-1] = (found[-1][0], at + 1, what)
        elif what is not None:
            found.append((at, at + 1, what))
        before = what
    return found


def types_of(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the types of spans that tags may mark.

    >>> types_of(["O", "B-name", "I-name", "B-place"])
    ('name', 'place')
    """
    return tuple(dict.fromkeys([tag[2:] for tag in tags if tag.startswith(_MARKS)]))


@dataclass(frozen=True, eq=False)
class MeasuredSpans(Score):
    """How a network did on texts with tagged words."""

    classes: tuple[str, ...]
    spans: Tensor
    """int64, (types, 3): spans found that are right, that there are, and that were found."""
    words: tuple[int, int]
    """How many words were tagged right, of how many."""
    loss: float
    """Mean cross-entropy of a word."""
    kind: str = "tokens"

    @property
    def count(self) -> int:
        return int(self.spans[:, 1].sum())

    @property
    def accuracy(self) -> float:
        """Percent: F1 of all spans together; 0 where there are none."""
        return self.numbers()["f1"]

    def numbers(self) -> Mapping[str, float]:
        """Return F1, precision and recall of all spans together, and words tagged right, in percent."""
        found = {name: share or 0.0 for name, share in _shares(self.spans.sum(0)).items()}
        right, words = self.words
        return {
            "f1": found["f1"],
            "precision": found["precision"],
            "recall": found["recall"],
            "token_accuracy": 100 * right / max(words, 1),
        }

    def summary(self, samples: str) -> str:
        found = self.numbers()
        return (
            f"span F1 {found['f1']:.2f}% (precision {found['precision']:.2f}%, recall {found['recall']:.2f}%), "
            f"{found['token_accuracy']:.2f}% of words right, in {samples}"
        )

    def by_class(self) -> tuple[tuple[str, ...], Mapping[str, Sequence[float | None]]]:
        """Return spans, precision, recall and F1 of each type."""
        rows = {}
        for name, counts in zip(types_of(self.classes), self.spans, strict=True):
            found = _shares(counts)
            rows[name] = (int(counts[1]), found["precision"], found["recall"], found["f1"])
        return ("spans", "precision (%)", "recall (%)", "F1 (%)"), rows


def _shares(counts: Tensor) -> dict[str, float | None]:
    """Precision, recall and F1 in percent, of spans that are right, that there are, and that were found."""
    found = ratios(*counts.tolist())
    values = {name: 100 * float(found[name]) for name in ("precision", "recall", "f1")}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


class SpanMeter(Meter):
    """Counts spans and words, and adds up the loss."""

    def __init__(self, kind: Tokens, device: torch.device) -> None:
        self.kind = kind
        self.spans = torch.zeros(len(types_of(kind.classes)), 3, dtype=torch.int64, device=device)
        self.words = torch.zeros(2, dtype=torch.int64, device=device)
        self.loss = torch.zeros(1, device=device)

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        self.loss += self.kind.losses(outputs, targets, Loss())
        self.words += torch.stack([self.kind.right(outputs, targets), self.kind.count(targets)])
        self.spans += self.kind.kept(outputs, targets).sum(0)

    def end(self, summed: Reduce, gathered: Reduce) -> MeasuredSpans:
        right, words = summed(self.words).tolist()
        loss = summed(self.loss).item() / max(words, 1)
        return MeasuredSpans(self.kind.classes, summed(self.spans).cpu(), (right, words), loss)


class Tokens(Classification):
    """A tag for each word; outputs are logits (n, tokens, tags), labels int64 (n, tokens), -100 where none counts."""

    name = "tokens"
    noun = "tag"
    losses_known = ("auto",)
    per_token = True
    fits = False
    one_each = False

    def checked(self, output: Any) -> Tensor:
        tags = len(self.classes)
        if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[2] != tags:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the network returned {found}: expected (n, tokens, {tags}){_ADVICE}")
        return output.float()

    def outputs(self, output: Any, targets: Tensor) -> Tensor:
        """Return logits as losses take them, (n, tags, tokens)."""
        return self.checked(output).transpose(1, 2)

    def rows(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state of each word's first token, (words, width), and its tag."""
        if features.shape[:-1] != targets.shape:
            found = tuple(features.shape)
            raise InputError(f"the head is given {found}: expected (n, tokens, width){_ADVICE}")
        return features[targets >= 0], targets[targets >= 0]

    def called(self, outputs: Tensor, targets: Tensor) -> list[list[int]]:
        """Return of each text the tags of its words, by number; of those that are not cut off."""
        pairs = zip(outputs.argmax(1), targets, strict=True)
        return [called[truth >= 0].tolist() for called, truth in pairs]

    def kept(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return of each text and type the spans found that are right, that there are, and that were found.

        int64 (n, types, 3).
        """
        types = {name: at for at, name in enumerate(types_of(self.classes))}
        counts = torch.zeros(len(targets), len(types), 3, dtype=torch.int64)
        for text, called in enumerate(self.called(outputs, targets)):
            pair = (called, targets[text][targets[text] >= 0].tolist())
            found, there = (set(spans_of([self.classes[i] for i in row])) for row in pair)
            for column, spans in enumerate((found & there, there, found)):
                for _, _, what in spans:
                    counts[text, types[what], column] += 1
        return counts.to(targets.device)

    def meter(self, device: torch.device) -> Meter:
        return SpanMeter(self, device)

    def answers(self, outputs: Tensor, top: int, inputs: Sequence[Any] = ()) -> list[Said]:
        """Return the spans of each text in ``inputs``; words that are cut off are in none."""
        if not isinstance(self.preprocessing, TextPreprocessing):
            raise InputError("tags of words: expected a task whose file names its tokenizer")
        words = [words_of(text) for text in inputs]
        _, places = self.preprocessing.aligned(inputs, words)
        chances = outputs.float().softmax(2).cpu()
        return [
            Said(spans=tuple(self._spans(*each)))
            for each in zip(inputs, words, places, chances, strict=True)
        ]

    def _spans(
        self, text: str, words: Words, places: Sequence[int], chances: Tensor
    ) -> Iterator[Span]:
        """The spans of a text whose words begin at ``places`` of ``chances`` (tokens, tags)."""
        best, tags = (part.tolist() for part in chances.max(1))
        called = ["O" if at < 0 else self.classes[tags[at]] for at in places]
        for first, end, label in spans_of(called):
            start, stop = words[first][0], words[end - 1][1]
            sure = sum(best[at] for at in places[first:end]) / (end - first)
            yield Span(start=start, end=stop, text=text[start:stop], label=label, probability=sure)

    def confidence(self, outputs: Tensor) -> Tensor:
        """Return 0: being sure that most words are in no span says little."""
        return outputs.new_zeros(len(outputs))

    def guess(self, targets: Tensor) -> float:
        """Return the entropy of how often each tag is there."""
        shares = torch.bincount(targets[targets >= 0]).float() / (targets >= 0).sum().clamp_min(1)
        return float(torch.special.entr(shares).sum())
