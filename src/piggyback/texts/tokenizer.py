"""A tokenizer of transformers: texts to numbers, and what identifies it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any

from piggyback.errors import BackboneError
from piggyback.texts.words import Words, places_of

PROBES = (
    "Hello World! It's 12.5% -- isn't it?",
    "hello world",
    "  two  spaces\tand\na line ",
    "Ünïcödé naïve façade STRASSE straße",
    "日本語 中文 한국어 русский العربية",
    "😀 👩‍👩‍👧 C++ foo_bar http://a.b/c?d=e#f",
    "unbelievableness antidisestablishmentarianism",
    "[CLS] <s> </s> [SEP] <|endoftext|>",
)
"""Texts whose tokens tell apart tokenizers of one vocabulary: case, accents, spaces, scripts, word parts, marks."""


class Tokenizer:
    """A tokenizer that several threads may use."""

    def __init__(self, inner: Any, source: str) -> None:
        self.inner, self.source = inner, source
        self._lock = threading.Lock()
        if inner.pad_token_id is None:
            raise BackboneError(
                f"backbone {source!r}: its tokenizer has no padding token: expected one, to batch texts of different "
                "lengths"
            )
        self.pad = int(inner.pad_token_id)

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Return the tokens of each text, and how many texts were longer and are cut to ``max_length``."""
        with self._lock:  # how it cuts is kept in the tokenizer itself, from call to call
            rows = self._ids(list(texts))
            long = [at for at, row in enumerate(rows) if len(row) > max_length]
            if long:
                cut = self._ids([texts[at] for at in long], truncation=True, max_length=max_length)
                for at, row in zip(long, cut, strict=True):
                    rows[at] = row
        return rows, len(long)

    def aligned(
        self, texts: Sequence[str], words: Sequence[Words], max_length: int
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Return the tokens of each text as ``encode``, and the place of each word's first token, see ``places_of``.

        Raises BackboneError for a tokenizer that does not say which letters a token is made of.
        """
        if not getattr(self.inner, "is_fast", False):
            raise BackboneError(
                f"backbone {self.source!r}: its tokenizer does not say where tokens come from: expected a fast one, "
                "with tokenizer.json, for tags of words"
            )
        with self._lock:
            found = self.inner(
                list(texts), return_offsets_mapping=True, truncation=True, max_length=max_length
            )
        pairs = zip(words, found["offset_mapping"], strict=True)
        return found["input_ids"], [places_of(own, offsets) for own, offsets in pairs]

    def digest(self) -> str:
        """Return a SHA-256, hex, of its vocabulary and of what it makes of ``PROBES``.

        The same tokenizer saved again, by another version or into other files, has the same.
        """
        known = [sorted(self.inner.get_vocab().items()), self.pad, self.encode(PROBES, 1 << 30)[0]]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def _ids(self, texts: list[str], **options: Any) -> list[list[int]]:
        if not texts:
            return []
        found = self.inner(
            texts,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
            **options,
        )
        rows: list[list[int]] = found["input_ids"]
        return rows

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
