"""The words of a text: where they are, and which of its tokens each begins with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

Words: TypeAlias = Sequence[tuple[int, int]]
"""Start and end of each word of a text, in letters, the end outside."""
_SPACED = re.compile(r"\S+")
_BEFORE = '([{"“‘«'  # noqa: RUF001
_AFTER = '.,;:!?)]}"”’»…'  # noqa: RUF001
"""Punctuation that stands right before a word, and right after one."""


def spaced_words(text: str) -> Words:
    """Return the words of a text whose words have spaces between them, as tables of tagged words have it.

    >>> spaced_words("in New York .")
    [(0, 2), (3, 6), (7, 11), (12, 13)]
    """
    return [found.span() for found in _SPACED.finditer(text)]


def words_of(text: str) -> Words:
    """Return the words of any text: what spaces part, and punctuation at its ends as words of its own.

    Of a text with spaces around its punctuation these are ``spaced_words``, but for abbreviations with a stop.

    >>> [text[a:b] for text in ['She said "New York, 5.5 km".'] for a, b in words_of(text)]
    ['She', 'said', '"', 'New', 'York', ',', '5.5', 'km', '".']
    """
    found = []
    for start, end in spaced_words(text):
        last = start + len(text[start:end].rstrip(_AFTER))
        first = last - len(text[start:last].lstrip(_BEFORE))
        if not any(map(str.isalnum, text[first:last])):  # of punctuation alone
            first, last = start, end
        parts = ((start, first), (first, last), (last, end))
        found += [(a, b) for a, b in parts if a < b]
    return found


def places_of(words: Words, tokens: Words) -> list[int]:
    """Return the place of each word's first token among ``tokens``; -1 for a word that has none of its own.

    Tokens are given by where they come from, empty ones for those that a tokenizer adds.

    >>> places_of([(0, 2), (3, 11), (12, 13)], [(0, 0), (0, 2), (3, 6), (6, 11), (0, 0)])
    [1, 2, -1]
    """
    found, at = [], 0
    for start, end in words:
        while at < len(tokens) and tokens[at][1] <= start:
            at += 1
        own = at < len(tokens) and tokens[at][0] < end
        found.append(at if own else -1)
        at += own
    return found
