"""multipart/form-data: the parts of a body that has been read whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from piggyback.serve.http.refusals import RefusedError, too_large

MAX_HEADERS = 8
MAX_HEADER_BYTES = 4096
"""Of all headers of one part."""


@dataclass(frozen=True)
class Part:
    """One part of a form."""

    name: str
    data: bytes


def parse_form(body: bytes, content_type: str, most_parts: int) -> list[Part]:
    """Return the parts of ``body``, whose request had the header ``content_type``.

    Raises RefusedError: 400 for a form that is not whole, 413 for more parts than ``most_parts``.

    >>> form = b'--x\\r\\nContent-Disposition: form-data; name="top_k"\\r\\n\\r\\n3\\r\\n--x--\\r\\n'
    >>> parse_form(form, "multipart/form-data; boundary=x", 10)
    [Part(name='top_k', data=b'3')]
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary or len(boundary) > 200:
        raise _broken("its content type names no boundary")
    # Each of these sends the parser back to look again: seconds, for a large body of nothing else.
    if re.search(b"\r\n--" + re.escape(boundary) + b"(?!\r\n|--)", body):
        raise _broken("its boundary is inside a part")
    reader = _Reader(most_parts)
    try:
        MultipartParser(boundary, reader.callbacks()).write(body)  # type: ignore[arg-type]
    except FormParserError as error:
        raise _broken(str(error)) from None
    if not reader.ended:
        raise _broken("it ends before its last boundary")
    return reader.parts


class _Reader:
    """Collects what the parser finds."""

    def __init__(self, most_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._most = most_parts
        self._headers: dict[str, str] = {}
        self._field = self._value = b""
        self._count = self._size = 0
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, Callable[..., Any]]:
        """Return the functions under the parser's names for them."""
        return {
            "on_part_begin": self._part_begin,
            "on_header_begin": self._header_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        if len(self.parts) >= self._most:
            raise too_large(f"a form of more than {self._most} parts: send several requests")
        self._headers, self._data, self._count, self._size = {}, [], 0, 0

    def _header_begin(self) -> None:
        self._count += 1
        if self._count > MAX_HEADERS:
            raise _broken(f"part {len(self.parts) + 1} has more than {MAX_HEADERS} headers")
        self._field = self._value = b""

    def _grow(self, found: bytes) -> bytes:
        self._size += len(found)
        if self._size > MAX_HEADER_BYTES:
            raise _broken(
                f"part {len(self.parts) + 1} has more than {MAX_HEADER_BYTES} bytes of headers"
            )
        return found

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += self._grow(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._grow(data[start:end])

    def _header_end(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = self._value.decode("latin-1")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _part_end(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition"))
        name = options.get(b"name", b"").decode("utf-8", errors="replace")
        if kind != b"form-data" or not name:
            raise _broken(f"part {len(self.parts) + 1} has no name")
        self.parts.append(
            Part(name, self._data[0] if len(self._data) == 1 else b"".join(self._data))
        )

    def _end(self) -> None:
        self.ended = True


def _broken(why: str) -> RefusedError:
    return RefusedError(400, "bad_request", f"the form cannot be read: {why}")
