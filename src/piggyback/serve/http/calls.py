"""One request: its headers, its body as it streams in, and what can break it off."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import parse_qsl

from piggyback.serve.http.refusals import RefusedError, invalid, too_large
from piggyback.serve.http.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATIENCE_S = 0.05
"""Before anyone looks whether the client is still there: most requests have been answered by then."""
LINGER_S = 1.0
"""What a refused client is still sending is thrown away for so long: closing at once would reset the
connection, and the refusal with it."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

Break = Literal["slow", "gone"]


class Call:
    """What a handler knows of a request."""

    def __init__(self, scope: Scope, receive: Receive, service: Service, number: str) -> None:
        self.service = service
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        # The first of each name: after it may come a second one, or one from behind the body.
        self.headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))
        self.id = self._given_id() or number
        self.names: dict[str, str] = {}
        """The variable parts of the path."""
        self.route = "other"
        """The path's pattern, for the metrics: never what a client made up."""
        self.task_name: str | None = None
        """For the log, once it is known to exist."""
        self.received = 0
        """Bytes of the body so far."""
        self.whole = not (
            self.headers.get(b"content-length", b"0") != b"0"
            or b"transfer-encoding" in self.headers
        )
        """Whether there is no more of the body to come."""
        self._receive = receive
        self._broken: Break | None = None
        self._task: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    def header(self, name: bytes) -> str:
        """Return a header's value by its name in lower case, "" where there is none."""
        return self.headers.get(name, b"").decode("latin-1").strip()

    async def body(self, most: int) -> bytes:
        """Return the whole body. Raises RefusedError: 413 once it is more than ``most`` bytes, 408 when it is slow."""
        if b"upgrade" in self.headers:
            # The quicker of uvicorn's parsers takes what follows for another protocol, and the body for empty.
            raise RefusedError(
                400,
                "bad_request",
                "a body after an Upgrade header cannot be read: ask without it (curl --http1.1)",
            )
        length = self.header(b"content-length")
        if length.isdecimal() and int(length) > most:
            raise too_large(f"a body of {length} bytes: the server takes {most}; send less at once")
        if self.header(b"content-encoding").lower() not in ("", "identity"):
            raise RefusedError(415, "unsupported", "a compressed body: send it as it is")
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        timer = loop.call_later(self.service.limits.body_s, self._break, "slow")
        pieces: list[bytes] = []
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                piece: bytes = message.get("body", b"")
                self.received += len(piece)
                self._hold(len(piece))
                if self.received > most:
                    raise too_large(
                        f"a body of more than {most} bytes: the server takes no more; send less at once"
                    )
                pieces.append(piece)
                if not message.get("more_body", False):
                    self.whole = True
                    return piece if len(pieces) == 1 else b"".join(pieces)
        finally:
            timer.cancel()

    def release(self) -> None:
        """Count the body out of what is held: nobody needs it any more."""
        self.service.held -= self.received

    async def attended(self, work: Awaitable[Any]) -> Any:
        """Return what ``work`` does; it is cancelled should the client go away."""
        self._task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._watch)
        try:
            return await work
        finally:
            timer.cancel()
            if self._watching is not None:
                self._watching.cancel()

    def cut_short(self, error: asyncio.CancelledError) -> RefusedError | GoneError:
        """Return why this call was broken off; raises ``error`` where neither it nor the server's end did that."""
        stopping = self.service.status == "stopping"
        if self._broken is None and not stopping:
            raise error
        uncancel = getattr(asyncio.current_task(), "uncancel", None)  # from Python 3.11 on
        if uncancel is not None:
            uncancel()
        if self._broken == "gone":
            return GoneError()
        if self._broken is None:
            return RefusedError(503, "stopping", "the server stopped before there was an answer")
        seconds = self.service.limits.body_s
        return RefusedError(408, "slow", f"the body did not arrive within {seconds:g} s")

    async def discard(self) -> None:
        """Take what the client is still sending, for a moment, and forget it."""

        async def rest() -> None:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(rest(), LINGER_S)

    def queried(self, known: tuple[str, ...]) -> list[tuple[str, str]]:
        """Return the query's names and values. Raises RefusedError (422) for a name that is not known."""
        if not self.query:
            return []
        return parse_query(self.query, known)

    def _given_id(self) -> str | None:
        given = self.headers.get(b"x-request-id")
        if given is None:
            return None
        text = given.decode("latin-1")
        return text if _ID.fullmatch(text) else None

    def _hold(self, number: int) -> None:
        self.service.held += number
        if self.service.held > self.service.limits.held_bytes:
            raise RefusedError(
                429,
                "overload",
                "the bodies of all requests are more than the server holds at once; ask again later",
                {"Retry-After": "1"},
            )

    def _break(self, why: Break) -> None:
        if self._task is not None:
            self._broken = why
            self._task.cancel()

    def _watch(self) -> None:
        self._watching = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._break("gone")


class GoneError(Exception):
    """The client went away: nobody is there to be answered."""


def parse_query(query: bytes, known: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the names and values in ``query``.

    >>> parse_query(b"task=a&task=b", ("task",))
    [('task', 'a'), ('task', 'b')]
    """
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=256,
        )
    except ValueError:
        raise RefusedError(
            400, "bad_request", "the query cannot be read: expected name=value&..."
        ) from None
    for name, _ in pairs:
        if name not in known:
            expected = ", ".join(known) or "none"
            raise invalid(f"query field {name[:40]!r}: expected {expected}")
    return pairs
