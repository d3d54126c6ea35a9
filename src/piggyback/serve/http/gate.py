"""What every request goes through: who asks, how it ended, one line in the log.

    request -> id -> token -> router -> handler -> reply -> counted, logged

An ASGI application around the router. A request that goes well starts no task of its own: that would cost more than
all the rest here.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
import time

from starlette.exceptions import HTTPException
from starlette.routing import Match, Route, Router
from starlette.types import Receive, Scope, Send

from piggyback.errors import PiggybackError
from piggyback.serve.http.calls import Call, GoneError
from piggyback.serve.http.hosts import names_this_machine
from piggyback.serve.http.metrics import HttpCounts
from piggyback.serve.http.refusals import RefusedError, refusal
from piggyback.serve.http.replies import Reply, refused
from piggyback.serve.http.service import Service

CALL = "piggyback.call"
"""Where the ASGI scope holds the Call; ``REPLY`` is where a handler puts what it answers."""
REPLY = "piggyback.reply"

OPEN = ("/", "/health", "/openapi.json")
"""Paths that want no token, beside the page's files. Every other path wants it: the router may match more
than it seems to, such as a path that ends with a line break."""

ACCESS = logging.getLogger("piggyback.access")
LOGGER = logging.getLogger(__name__)


class Gate:
    """Everything around a handler."""

    def __init__(self, router: Router, service: Service, counts: HttpCounts) -> None:
        self._router = router
        self._service = service
        self._counts = counts
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        began = time.perf_counter()
        number = f"{self._prefix}{next(self._numbers):08x}"
        call = Call(scope, receive, self._service, number)
        scope[CALL] = call
        self._service.in_flight += 1
        status = 0
        try:
            reply = await self._answered(call, scope, receive, send)
            if reply is not None:
                status = reply.status
                await self._send(call, reply, send)
        finally:
            self._service.in_flight -= 1
            call.release()
            self._counts.add(call.route, call.method, status)
            if ACCESS.isEnabledFor(logging.INFO):
                _log(call, status, time.perf_counter() - began)

    async def _answered(
        self, call: Call, scope: Scope, receive: Receive, send: Send
    ) -> Reply | None:
        """What is sent back; None when nobody is there any more."""
        try:
            self._admit(call)
            await self._router(scope, receive, send)
        except asyncio.CancelledError as error:
            cut = call.cut_short(error)
            return None if isinstance(cut, GoneError) else refused(cut, call.id)
        except GoneError:
            return None
        except HTTPException as error:  # the router's
            return refused(self._unrouted(call, scope, error), call.id)
        except PiggybackError as error:
            known = refusal(error)
            if known is not None:
                return refused(known, call.id)
            LOGGER.exception("request %s: %s %s", call.id, call.method, call.path)
        except Exception:
            # Whatever went wrong, the client gets one line and the log all of it.
            LOGGER.exception("request %s: %s %s", call.id, call.method, call.path)
        else:
            reply: Reply = scope[REPLY]
            return reply
        fault = RefusedError(
            500, "internal", "the server failed; its log has the reason under this request"
        )
        return refused(fault, call.id)

    def _admit(self, call: Call) -> None:
        token, path = self._service.token, call.path
        if self._service.only_local and not names_this_machine(call.header(b"host")):
            raise RefusedError(
                421,
                "wrong_host",
                "this server answers for localhost only; give it a token to use another name",
            )
        if token is None or path in OPEN or path.startswith("/page/"):
            return
        kind, _, given = call.header(b"authorization").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), token)
        if kind.lower() != "bearer" or not right:
            found = "another one" if given else "none"
            raise RefusedError(
                401,
                "unauthorized",
                f"this server wants a token: expected 'Authorization: Bearer TOKEN', found {found}",
                {"WWW-Authenticate": "Bearer"},
            )

    def _unrouted(self, call: Call, scope: Scope, error: HTTPException) -> RefusedError:
        if error.status_code == 405:
            # The router names the methods of the first route alone; a path has one for each.
            alike = [r for r in self._router.routes if r.matches(scope)[0] is Match.PARTIAL]
            methods = {m for r in alike if isinstance(r, Route) for m in r.methods or ()}
            allowed = ", ".join(sorted(methods))
            what = f"{call.method[:20]} is not for this path: expected {allowed}"
            return RefusedError(405, "method_not_allowed", what, {"Allow": allowed})
        return RefusedError(404, "not_found", f"no such path {call.path[:80]!r}; see /openapi.json")

    async def _send(self, call: Call, reply: Reply, send: Send) -> None:
        close = not call.whole or self._service.status == "stopping"
        await send(reply.start(call.id, close=close))
        if call.whole or reply.status == 408:
            await send({"type": "http.response.body", "body": reply.body})
            return
        await send({"type": "http.response.body", "body": reply.body, "more_body": True})
        await call.discard()
        await send({"type": "http.response.body", "body": b""})


def _log(call: Call, status: int, seconds: float) -> None:
    """One record a request; 499: the client went away."""
    ACCESS.info(
        {
            "method": call.method,
            "path": call.path[:200],
            "status": status or 499,
            "ms": round(1e3 * seconds, 2),
            "task": call.task_name,
            "bytes": call.received,
            "id": call.id,
        }
    )
