"""JSON from strangers: strict, and refused before it can cost anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from piggyback.serve.http.refusals import RefusedError

MAX_BRACKETS = 16
"""Objects, and lists, in a body; what the routes understand has three. Bounds the nesting too."""
MAX_DIGITS = 18


def parse_object(body: bytes, most_values: int) -> dict[str, Any]:
    """Return the JSON object in ``body``, which may hold ``most_values`` values in all.

    Strict: UTF-8, no key twice, no NaN, no numbers beyond 18 digits. Size is bounded by counting
    bytes before the parser makes objects: a list of lists would take 30 times the body's memory.
    Raises RefusedError (400).

    >>> parse_object(b'{"top_k": 3}', 10)
    {'top_k': 3}
    >>> parse_object(b'{"top_k": 3, "top_k": 4}', 10)
    Traceback (most recent call last):
    ...
    piggyback.serve.http.refusals.RefusedError: the body is not the JSON expected: key 'top_k' is there twice
    """
    if _more_than(MAX_BRACKETS, b"[", body) or _more_than(MAX_BRACKETS, b"{", body):
        raise malformed("too many lists and objects in it")
    if _more_than(most_values - 1, b",", body):
        raise malformed(f"more than {most_values} values in it")
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise malformed("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise malformed(f"{error.msg} at byte {error.pos}") from None
    if not isinstance(value, dict):
        raise malformed(f"expected an object, found {kind_of(value)}")
    return value


def malformed(why: str) -> RefusedError:
    """Return the refusal of a body that is not JSON, or not such as is taken."""
    return RefusedError(400, "malformed_json", f"the body is not the JSON expected: {why}")


def kind_of(value: object) -> str:
    """Return what JSON calls a parsed value.

    >>> kind_of([1]), kind_of(None)
    ('a list', 'null')
    """
    if value is None:
        return "null"
    names = {bool: "true or false", dict: "an object", list: "a list", str: "a text"}
    return names.get(type(value), "a number")


def _more_than(most: int, sign: bytes, body: bytes) -> bool:
    """Whether ``sign`` is there more than ``most`` times; five times as fast as counting, where it is rare."""
    at = -1
    for _ in range(most + 1):
        at = body.find(sign, at + 1)
        if at < 0:
            return False
    return True


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise malformed(f"key {twice[:40]!r} is there twice")
    return values


def _no_constant(text: str) -> NoReturn:
    raise malformed(f"{text} is not JSON")


def _short_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise malformed(f"a number of {len(text)} digits")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_short_int
)
