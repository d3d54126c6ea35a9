"""What every request goes through, around the router.

    request -> CORS, if wanted -> id, host, log, counts (Access) -> bytes and seconds of the body (BodyLimit) -> router

Both are plain ASGI: Starlette's ``BaseHTTPMiddleware`` starts a task for each request, which costs more than all
the rest here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from piggyback.errors import ClosedError, OverloadError, SlowRequestError, TooLargeError
from piggyback.serve.http.errors import code_of, error_response
from piggyback.serve.http.metrics import Metrics
from piggyback.serve.http.service import Service

ACCESS = logging.getLogger("piggyback.access")
LOGGER = logging.getLogger(__name__)

PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What the page may load: its own files, and the images it was given."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": PAGE_POLICY,
    "referrer-policy": "no-referrer",
}
"""Of every answer that does not say otherwise itself."""

QUIET = frozenset(
    {"/", "/docs", "/health", "/livez", "/metrics", "/openapi.json", "/readyz", "/v1/tasks"}
)
"""Routes that machines and open pages ask again and again: what went well there is logged at debug."""
QUIET_FOLDERS = ("/page/", "/swagger/")
PROBES = frozenset({"/health", "/readyz", "/livez"})
"""Of these also a 503, which says no more than the line about the start or the stop."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::[0-9]*)?")


class AccessMiddleware:
    """Gives each request an id, each answer its headers and a line in the log, and counts both.

    It is the outermost of ours, so it also answers for what no handler caught.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics) -> None:
        self.app = app
        self._service, self._metrics = service, metrics
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if _ID.fullmatch(given) else f"{self._prefix}{next(self._numbers):08x}"
        state = scope.setdefault("state", {})
        state["request_id"] = number
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = MutableHeaders(raw=message["headers"])
                said["x-request-id"] = number
                # A browser asks for the page's files again each time, by their ETag; answers are not kept.
                said.setdefault("cache-control", "no-cache" if "etag" in said else "no-store")
                for name, text in HEADERS.items():
                    said.setdefault(name, text)
                if self._service.status == "stopping" or status == SlowRequestError.http_status:
                    said["connection"] = "close"
            await send(message)

        self._service.in_flight += 1
        try:
            if self._service.local_only and not names_this_machine(headers.get("host", "")):
                what = "this server answers for localhost only; give it a token to use another name"
                state["code"] = code_of(421)
                await error_response(421, what)(scope, receive, send_on)
            else:
                await self.app(scope, receive, send_on)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except asyncio.CancelledError:
            # The time for stopping is over; whoever waits is told rather than left.
            if status or self._service.status != "stopping":
                raise
            if (task := asyncio.current_task()) is not None:
                task.uncancel()
            what, state["code"] = "the server stopped before there was an answer", ClosedError.code
            await error_response(503, what, ClosedError.code)(scope, receive, send_on)
        except Exception:
            LOGGER.exception("request %s: %s %s", number, scope["method"], scope["path"])
            if status:
                raise
            what = "the server failed; its log has the reason under this request"
            state["code"] = code_of(500)
            await error_response(500, what, request_id=number)(scope, receive, send_on)
        finally:
            self._service.in_flight -= 1
            # The route's own pattern: nothing that a client made up becomes a label.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count(route, scope["method"], status)
            well = 0 < status < 400 or (route in PROBES and status == 503)
            quiet = route in QUIET or scope["path"].startswith(QUIET_FOLDERS)
            level = logging.DEBUG if quiet and well else logging.INFO
            if ACCESS.isEnabledFor(level):
                line = {
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status or 499,  # 499: the client went away
                    "ms": round(1e3 * (time.perf_counter() - began), 2),
                    "task": state.get("task"),
                    "bytes": state.get("received", 0),
                    "id": number,
                }
                ACCESS.log(
                    level, line if well or "code" not in state else {**line, "code": state["code"]}
                )


class BodyLimitMiddleware:
    """Bounds a body's bytes, those of all bodies together, and the seconds that one may take.

    Starlette's own middleware, from 1.10 on, bounds the first alone. The limits are looked at when a route reads the
    body, and what is raised there is answered like any other error.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on with a ``receive`` that is limited."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limits = self._service.limits
        most = limits.upload_bytes if scope["method"] == "PUT" else limits.body_bytes
        length = Headers(scope=scope).get("content-length", "")
        received, whole, until = 0, False, 0.0

        async def receive_on() -> Message:
            nonlocal received, whole, until
            if whole:
                return await receive()  # for the client's going away, which may take its time
            if length.isdecimal() and int(length) > most:
                raise _too_large(f"a body of {length} bytes", most)
            until = until or asyncio.get_running_loop().time() + limits.body_s
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                what = f"the body did not arrive within {limits.body_s:g} s"
                raise SlowRequestError(what) from None
            piece = len(message.get("body", b""))
            received += piece
            self._service.held += piece
            scope["state"]["received"] = received
            whole = not message.get("more_body", False)
            if received > most:
                raise _too_large(f"a body of more than {most} bytes", most)
            if self._service.held > limits.held_bytes:
                what = "the bodies of all requests are more than the server holds at once"
                raise OverloadError(f"{what}; ask again later")
            return message

        try:
            await self.app(scope, receive_on, send)
        finally:
            self._service.held -= received


def names_this_machine(host: str) -> bool:
    """Return whether a ``Host`` header is an address or "localhost", or is not there at all.

    A page of a stranger can let its own name lead to 127.0.0.1 and then read what a server there answers; the name in
    this header is the one it came by. An address cannot be made to lead elsewhere. (Starlette's TrustedHostMiddleware
    wants a list of names, and answers in plain text.)

    >>> names_this_machine("localhost:8000"), names_this_machine("[::1]:8000"), names_this_machine("a.example")
    (True, True, False)
    """
    if not host:
        return True
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    name = found[1] or found[2]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True


def _too_large(what: str, most: int) -> TooLargeError:
    return TooLargeError(f"{what}: the server takes {most}; send less at once")
