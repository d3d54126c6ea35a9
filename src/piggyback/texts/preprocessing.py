"""What a text goes through before the backbone sees it; travels with every task on texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from piggyback.errors import BackboneMismatchError, DataError, InputError, TooLargeError
from piggyback.images.preprocessing import Preprocessing
from piggyback.texts.words import Words

if TYPE_CHECKING:
    from torch import Tensor  # a file's header is read without it

    from piggyback.texts.tokenizer import Tokenizer

Prepares: TypeAlias = "Preprocessing | TextPreprocessing"
"""How a task's inputs are prepared: images, or texts."""
MOST_TOKENS = 1 << 16
MOST_CHARACTERS = 1_000_000
"""Of one text; a longer one is refused before it is cut into tokens."""


def as_images(prepared: Prepares) -> Preprocessing:
    """Return ``prepared`` if it is for images; InputError for a backbone that reads texts.

    >>> as_images(Preprocessing(64)).image_size
    64
    """
    if isinstance(prepared, TextPreprocessing):
        raise InputError(
            "images for a backbone that reads texts: expected one that sees images, such as timm:NAME"
        )
    return prepared


class Text(str):
    """A text that came from afar: unlike a plain ``str`` it is never taken for the path of an image."""


def bad_text(texts: Sequence[object]) -> int | None:
    """Return the place of the first that is no text, or one without a letter; None where all are good.

    >>> bad_text(["a film", " "])
    1
    """
    # A million good texts are told from bad ones at once.
    if not set(map(type, texts)) - {str} and all(map(str.strip, cast(Sequence[str], texts))):
        return None
    bad = (at for at, one in enumerate(texts) if not (isinstance(one, str) and one.strip()))
    return next(bad, None)


def utf8(text: str) -> bytes:
    """Return a text in UTF-8; raises DataError for half a character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {text!r:.80} holds a lone surrogate, which is no character: expected UTF-8"
        ) from error


@dataclass(frozen=True)
class TextPreprocessing:
    """Cut a text into tokens, at most ``max_length`` of them."""

    tokenizer: str
    """SHA-256, hex, of what the tokenizer does: see ``Tokenizer.digest``."""
    max_length: int = 512
    """Tokens of a text, those at its ends included; more are cut off."""
    pad: int = 0
    """The token that fills up shorter texts of a batch, which the network leaves out."""
    family: str = ""
    """The architecture that the tokenizer came with, such as bert; for people."""
    reader: Tokenizer | None = field(default=None, compare=False, repr=False)
    """The tokenizer itself, of the backbone in memory; it is not written to files."""

    def __post_init__(self) -> None:
        good = isinstance(self.tokenizer, str) and len(self.tokenizer) == 64
        if not good or set(self.tokenizer) - set("0123456789abcdef"):
            raise InputError(f"tokenizer {self.tokenizer!r:.90}: expected a SHA-256 in hex")
        if not (type(self.max_length) is int and 3 <= self.max_length <= MOST_TOKENS):
            raise InputError(f"max_length {self.max_length!r}: expected 3 to {MOST_TOKENS} tokens")
        if not (type(self.pad) is int and self.pad >= 0):
            raise InputError(f"pad {self.pad!r}: expected the number of a token")
        if not isinstance(self.family, str):
            raise InputError(f"family {self.family!r}: expected a text")

    def __call__(self, text: Any) -> Tensor:
        """Return one text's tokens as the network takes them, int64 (tokens,).

        Raises InputError for anything but a text, and where no backbone with the tokenizer is loaded; DataError for a
        text that cannot be used, as for an image.
        """
        import torch

        if not isinstance(text, str):
            raise InputError(
                f"the task reads texts: expected a text, found {type(text).__name__}; images are for tasks on images"
            )
        if not text.strip():
            raise DataError("the text is empty: expected one with a letter in it")
        if len(text) > MOST_CHARACTERS:
            raise TooLargeError(
                f"a text of {len(text)} characters: expected at most {MOST_CHARACTERS}; send parts of it"
            )
        utf8(text)
        return torch.tensor(self.bound_reader().encode([text], self.max_length)[0][0])

    def batch(self, texts: Sequence[str]) -> Tensor:
        """Return several texts as the network takes them, int64 (n, tokens of the longest), the rest padded."""
        return self.collate([self(text) for text in texts])

    def aligned(
        self, texts: Sequence[str], words: Sequence[Words]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return several texts' tokens, and where in these each of their words begins; -1 where it is cut off."""
        return self.bound_reader().aligned(texts, words, self.max_length)

    def collate(self, rows: Sequence[Tensor]) -> Tensor:
        """Return texts' tokens, int64 (tokens,) each, as a batch: (n, tokens of the longest), the rest padded."""
        from torch.nn.utils.rnn import pad_sequence

        return pad_sequence(list(rows), batch_first=True, padding_value=self.pad)

    def network_input(self, tokens: Tensor) -> Tensor:
        """Return a batch of a loader as the network takes it: tokens are."""
        return tokens

    def example(self) -> Tensor:
        """Return a batch of one text to try a network on, int64 (1, 8)."""
        import torch

        return torch.full((1, min(8, self.max_length)), 1 if self.pad != 1 else 2)

    def whole(self) -> TextPreprocessing:
        """Return how tasks see texts: as the backbone does."""
        return self

    def bound_reader(self) -> Tokenizer:
        """Return the tokenizer; InputError where it is not in memory."""
        if self.reader is None:
            raise InputError(
                "the tokenizer is not loaded: expected the preprocessing of a backbone, or of a task that a model with "
                "that backbone holds"
            )
        return self.reader

    def bound(self, own: object, task: str, source: str = "") -> TextPreprocessing:
        """Return this with the tokenizer of ``own``, the backbone's preprocessing; BackboneMismatchError for another.

        >>> one = TextPreprocessing("0" * 64)
        >>> one.bound(TextPreprocessing("1" * 64), "mood", "transformers:x")
        Traceback (most recent call last):
        ...
        piggyback.errors.BackboneMismatchError: task 'mood' was learned with tokenizer 000000000000, the backbone has \
111111111111: load transformers:x with the tokenizer it was learned with
        """
        if own is None:  # of a network built by hand nobody knows
            return self
        if isinstance(own, TextPreprocessing) and own.tokenizer == self.tokenizer:
            return replace(self, reader=own.reader)
        found = own.tokenizer[:12] if isinstance(own, TextPreprocessing) else "none"
        raise BackboneMismatchError(
            f"task {task!r} was learned with tokenizer {self.tokenizer[:12]}, the backbone has {found}: "
            f"load {source or 'the backbone'} with the tokenizer it was learned with"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_json`` reads them back."""
        values = asdict(replace(self, reader=None))
        del values["reader"]
        return values

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TextPreprocessing:
        """Return the object that ``to_json`` wrote; raises InputError for anything else."""
        if values.keys() != {"tokenizer", "max_length", "pad", "family"}:
            raise InputError(
                f"preprocessing {sorted(values)}: expected tokenizer, max_length, pad, family"
            )
        return TextPreprocessing(**values)
