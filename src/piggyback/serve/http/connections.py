"""uvicorn's protocol, held to limits that it does not have itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from piggyback.serve.http.limits import Limits
from piggyback.serve.http.refusals import RefusedError
from piggyback.serve.http.replies import refused

MAX_HEAD = 65536
"""Bytes of a request's line and headers."""
_CHECKS = 4
"""Looks at a connection within the time that headers may take."""


def guarded(limits: Limits, ended: Callable[[int], object]) -> type[asyncio.Protocol]:
    """Return the quickest protocol that is installed, which answers and closes what goes beyond ``limits``.

    It bounds how many connections are open, how long and how large a request's head is and how long an answer may
    lie there unread, and answers what is not HTTP in the format of all errors; ``ended`` is called with the status
    of each such answer. A request costs two comparisons; time is looked at now and then.
    """

    base: Any = AutoHTTPProtocol

    class Guarded(base):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._stuck: asyncio.TimerHandle | None = None
            """Ends the connection unless the client reads on."""
            # Whatever the system does not take at once counts as unread.
            transport.set_write_buffer_limits(0)
            self._known: Any = None
            """The request that was the newest when someone looked last."""
            self._waiting = 0
            """Looks since which no head has come to its end."""
            self._head = 0
            self._timer = self.loop.call_later(limits.header_s / _CHECKS, self._look)
            if len(self.connections) > limits.connections:
                what = f"{limits.connections} connections are open: ask again later"
                self._end(429, "overload", what, {"Retry-After": "1"})

        def connection_lost(self, error: Exception | None) -> None:
            self._timer.cancel()
            self._unstick()
            super().connection_lost(error)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(limits.body_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unstick()

        def _unstick(self) -> None:
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not self._known:
                self._known, self._head, self._waiting = self.cycle, 0, 0
            elif self._between():
                self._head += len(data)
                if self._head > MAX_HEAD:
                    what = f"more than {MAX_HEAD} bytes of headers: expected less"
                    self._end(431, "too_large", what)

        def send_400_response(self, msg: str) -> None:
            what = (
                "the request's line or headers cannot be read: expected HTTP/1.1, each length once, "
                "a path of ASCII below 64 KiB"
            )
            self._end(400, "bad_request", what)

        def _between(self) -> bool:
            """Whether no request is being answered."""
            return self.cycle is None or self.cycle.response_complete

        def _look(self) -> None:
            # uvicorn's own timer closes a connection on which nothing at all has come since an answer.
            if self._between() and self.timeout_keep_alive_task is None:
                self._waiting += 1
            else:
                self._waiting = 0
            if self._waiting > _CHECKS:
                what = f"the headers did not arrive within {limits.header_s:g} s"
                self._end(408, "slow", what)
            else:
                self._timer = self.loop.call_later(limits.header_s / _CHECKS, self._look)

        def _end(
            self, status: int, code: str, what: str, headers: Mapping[str, str] | None = None
        ) -> None:
            if not self.transport.is_closing():
                ended(status)
                self.transport.write(closing_reply(RefusedError(status, code, what, headers)))
                self.transport.close()

    return Guarded


def closing_reply(error: RefusedError) -> bytes:
    """Return ``error`` as a whole HTTP response, for a connection that has no request yet."""
    reply = refused(error, "")
    start = reply.start("-", close=True)
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in start["headers"])
    return head + lines + b"\r\n" + reply.body
