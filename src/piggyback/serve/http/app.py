"""The web application: FastAPI's router and OpenAPI document around handlers that speak ASGI themselves.

    Gate (id, token, errors, log) -> router -> Direct route -> handler -> Reply

FastAPI's own way from a request to a function costs more than a small network takes: its middleware, its
dependencies, its parsing of bodies that have arrived whole. Here a route hands the request to its handler.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

import piggyback
from piggyback.errors import InputError
from piggyback.names import is_token
from piggyback.serve.engine import Engine
from piggyback.serve.http import metrics
from piggyback.serve.http.assets import Assets
from piggyback.serve.http.calls import Call
from piggyback.serve.http.gate import CALL, REPLY, Gate
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.openapi import DESCRIBED
from piggyback.serve.http.refusals import RefusedError
from piggyback.serve.http.replies import Reply, json_reply
from piggyback.serve.http.routes import Handler, health
from piggyback.serve.http.service import Service


class Application(FastAPI):
    """FastAPI with the gate in place of its own middleware."""

    def __init__(self, service: Service) -> None:
        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            service.begin()
            yield
            await service.end()

        super().__init__(
            title="Piggyback",
            summary="Many image classifiers, one network in memory.",
            version=piggyback.__version__,
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,
        )
        self.service = service
        self.counts = metrics.HttpCounts()

    def openapi(self) -> dict[str, Any]:
        """Return the document, which says that there may be a token."""
        document = super().openapi()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}, {}]
        return document

    def build_middleware_stack(self) -> ASGIApp:
        """Return the gate around the router: it does what FastAPI's middleware would, in our format."""
        return Gate(self.router, self.service, self.counts)


class Direct(APIRoute):
    """A route that hands requests to a handler; FastAPI matches and describes it."""

    def __init__(self, path: str, handler: Handler, method: str, **described: Any) -> None:
        super().__init__(
            path,
            _described,
            methods=[method],
            name=handler.__name__,
            response_class=Response,
            **described,
        )
        self._handler = handler
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope[CALL]
        call.route = self.path
        call.names = scope["path_params"]
        scope[REPLY] = await self._handler(call)


def create_app(
    start: Callable[[], Engine], *, token: str | None = None, limits: Limits | None = None
) -> Application:
    """Return an application that starts an engine by ``start``, in a thread, and answers 503 until it is there.

    With a ``token``, everything under /v1 and /metrics wants it, and tasks can be uploaded and deleted. The engine is
    closed when the application ends. Raises InputError for a token that no header could carry.

    >>> def start() -> Engine: ...
    >>> sorted(create_app(start).openapi()["paths"])  # doctest: +ELLIPSIS
    ['/health', '/v1/predict', '/v1/tasks', ...]
    """
    if token is not None and not is_token(token):
        raise InputError("the token: expected one or more ASCII characters without spaces")
    service = Service(start, None if token is None else token.encode(), limits or Limits())
    app = Application(service)
    for each in DESCRIBED:
        route = Direct(
            each.path,
            each.handler,
            each.method,
            summary=each.summary,
            description=each.handler.__doc__,
            status_code=each.status,
            responses=each.responses(),
            openapi_extra=each.extra,
        )
        app.router.routes.append(route)
    app.router.routes.append(Direct("/health", health, "HEAD", include_in_schema=False))
    for path, handler in _undescribed(app).items():
        for method in ("GET", "HEAD"):
            app.router.routes.append(Direct(path, handler, method, include_in_schema=False))
    return app


def _undescribed(app: Application) -> dict[str, Handler]:
    """Routes that answer in other formats than the API's."""
    assets = Assets()
    numbers = metrics.registry(app.service, app.counts)

    async def page(call: Call) -> Reply:
        return asset(call, "index.html")

    async def page_file(call: Call) -> Reply:
        return asset(call, call.names["name"])

    def asset(call: Call, name: str) -> Reply:
        reply = assets.reply(name, call.header(b"if-none-match"))
        if reply is None:
            raise RefusedError(404, "not_found", f"no such file {name[:80]!r}")
        return reply

    async def prometheus(call: Call) -> Reply:
        # A thousand tasks make a megabyte of text: others are answered meanwhile.
        text = await app.service.aside(lambda: metrics.exposition(numbers))
        return Reply(text, kind=metrics.KIND)

    async def openapi(call: Call) -> Reply:
        return json_reply(app.openapi())

    return {
        "/": page,
        "/page/{name}": page_file,
        "/metrics": prometheus,
        "/openapi.json": openapi,
    }


async def _described() -> None:
    """Never called: routes answer by their handlers."""
