"""JSON from strangers: what a lenient reader would take in one of several ways is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def strict_json(text: str | bytes, **readers: Any) -> Any:
    """Return the value of a JSON text in UTF-8; ``readers`` are those of ``json.loads``, such as ``parse_int``.

    Raises ValueError, in one line, where it is none, names a key twice, nests too deep, or holds a lone surrogate.

    >>> strict_json('{"label": "a", "label": "b"}')
    Traceback (most recent call last):
    ValueError: key 'label' appears twice
    """
    plain = text if isinstance(text, str) else text.decode()
    try:
        found = json.loads(plain, object_pairs_hook=_object, **readers)
    except RecursionError:
        raise ValueError("it nests too deep") from None
    if "\\u" in plain:  # an escape may hide half a surrogate pair, which no output could show
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a lone surrogate, \\ud800 to \\udfff, is no character") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that came twice one would count, and nobody would know which."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:80]!r} appears twice")
    return found
