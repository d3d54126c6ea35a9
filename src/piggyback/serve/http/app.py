"""The web application: ordinary FastAPI, to which anyone may add middleware, routers and overrides."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

import piggyback
from piggyback.errors import InputError, PiggybackError, check_is
from piggyback.names import is_token, plain, read_token
from piggyback.serve.http.errors import answer_errors
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.metrics import Metrics
from piggyback.serve.http.middleware import AccessMiddleware, BodyLimitMiddleware
from piggyback.serve.http.routes import api, open_routes
from piggyback.serve.http.service import Service
from piggyback.serve.options import EngineOptions, from_mapping, parse_bytes

if TYPE_CHECKING:
    from piggyback.serve.engine import Engine

T = TypeVar("T")

APP_LOAD_ERROR = 4
"""The exit code by which a worker tells gunicorn that another one would fail, too."""
PORT_S = 0.05
"""Until the engine is started."""

_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^/\s@:\[\]]+)(:[0-9]+)?")

DOCS_POLICY = (
    "default-src 'self'; img-src 'self' data:; script-src 'self' 'unsafe-inline'; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""What Swagger UI needs beyond the page: the script and the styles in its own HTML."""


def create_app(
    engine: Engine | Callable[[], Engine],
    *,
    token: str | None = None,
    limits: Limits | None = None,
    local_only: bool = False,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """Return an application that answers for ``engine``.

    A function is called in a thread when the application starts, and answers are 503 until it has returned; the engine
    it makes is closed when the application ends. An engine that is given ready stays the caller's to close.

    With a ``token``, everything under /v1 and /metrics wants it, and tasks can be uploaded and deleted. With
    ``local_only``, only requests for an address or "localhost" are answered: for a server on loopback without a token.
    ``cors_origins``: whose pages may ask, such as ``["https://shop.example"]``. Raises InputError for a token that no
    header could carry, and for what is none of these.

    >>> def start() -> Engine: ...
    >>> app = create_app(start)
    >>> @app.get("/version")
    ... async def version() -> str: return "1"
    >>> sorted(app.openapi()["paths"])  # doctest: +ELLIPSIS
    ['/health', '/livez', '/readyz', '/v1/predict', '/v1/tasks', ..., '/version']
    """
    if token is not None and not is_token(token):
        raise InputError("the token: expected one or more ASCII characters without spaces")
    if not (callable(engine) or hasattr(engine, "predict_async")):
        raise InputError(f"engine {engine!r:.100}: expected an Engine or a function that makes one")
    limits = Limits() if limits is None else limits
    check_is("limits", limits, Limits, "Limits(...)")
    check_is("local_only", local_only, bool, "True or False")
    check_is("cors_origins", cors_origins, (list, tuple), "a list of origins")
    for origin in cors_origins:
        if not (isinstance(origin, str) and _ORIGIN.fullmatch(origin)):
            raise InputError(
                f"cors_origins: {origin!r}: expected an origin as browsers send it, such as 'https://shop.example' or "
                "'http://localhost:3000', or '*'"
            )
    service = Service(engine, limits, token, local_only)
    metrics = Metrics(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The server around this takes its port after this has returned: one that is taken ends it before
        # anything is loaded.
        service.reset()
        asyncio.get_running_loop().call_later(PORT_S, service.begin)
        yield
        await service.end()

    app = FastAPI(
        title="Piggyback",
        summary="Many tasks, one network in memory.",
        version=piggyback.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.metrics = metrics.registry
    # The last that is added is the first to see a request.
    app.add_middleware(BodyLimitMiddleware, service=service)
    app.add_middleware(AccessMiddleware, service=service, metrics=metrics)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    answer_errors(app, [*open_routes.routes, *api.routes])
    app.include_router(api)
    app.include_router(open_routes)
    _add_pages(app)
    return app


def app_from_env() -> FastAPI:
    """Return an application as environment variables say: a factory for uvicorn and gunicorn.

        PIGGYBACK_TASKS=tasks/ PIGGYBACK_BACKBONE=resnet50 uvicorn --factory piggyback.serve.http:app_from_env

    PIGGYBACK_TASKS (a folder or URL) and PIGGYBACK_BACKBONE are needed. PIGGYBACK_MEMORY is the engine's budget;
    PIGGYBACK_TOKEN or PIGGYBACK_TOKEN_FILE the token; PIGGYBACK_CORS_ORIGINS origins, with commas between them;
    PIGGYBACK_LOCAL_ONLY=0 lets a server without a token answer under every name. PIGGYBACK_ENGINE_... and
    PIGGYBACK_LIMITS_... set the fields of ``EngineOptions`` and ``Limits``, such as PIGGYBACK_ENGINE_MAX_BATCH=8.
    What is wrong with them is one line on standard error, and exit code 4, after which gunicorn does not try again.
    """
    try:
        return _app_from_env()
    except PiggybackError as error:
        sys.stderr.write(f"error: {plain(str(error))}\n")
        raise SystemExit(APP_LOAD_ERROR) from None


def _app_from_env() -> FastAPI:
    """Raises InputError, which names the variable."""
    environ = os.environ
    missing = [name for name in ("PIGGYBACK_TASKS", "PIGGYBACK_BACKBONE") if not environ.get(name)]
    if missing:
        raise InputError(f"environment variable {missing[0]}: expected it to be set")
    options = _from_env(EngineOptions, "PIGGYBACK_ENGINE_")
    limits = _from_env(Limits, "PIGGYBACK_LIMITS_")
    token = read_token(environ.get("PIGGYBACK_TOKEN_FILE"))
    origins = environ.get("PIGGYBACK_CORS_ORIGINS", "")
    size = environ.get("PIGGYBACK_MEMORY", "2GiB")
    memory = parse_bytes(size, "environment variable PIGGYBACK_MEMORY")

    local = environ.get("PIGGYBACK_LOCAL_ONLY", "1")
    if local not in ("0", "1"):
        raise InputError(f"environment variable PIGGYBACK_LOCAL_ONLY {local!r}: expected 0 or 1")

    def start() -> Engine:
        # torch takes seconds, in which a port that is taken has been told long since.
        from piggyback.serve.engine import Engine

        return Engine(environ["PIGGYBACK_BACKBONE"], environ["PIGGYBACK_TASKS"], memory, options)

    return create_app(
        start,
        token=token,
        limits=limits,
        local_only=token is None and local == "1",
        cors_origins=[origin.strip() for origin in origins.split(",") if origin.strip()],
    )


def _from_env(kind: type[T], prefix: str) -> T:
    """A dataclass from the variables that begin with ``prefix``."""
    given = {
        name.removeprefix(prefix).lower(): text
        for name, text in os.environ.items()
        if name.startswith(prefix)
    }
    return from_mapping(kind, given, lambda name: f"environment variable {prefix}{name.upper()}")


def _add_pages(app: FastAPI) -> None:
    """Add the page and the documentation; neither loads anything from elsewhere."""
    page = StaticFiles(directory=Path(__file__).parent / "page")

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return await page.get_response("index.html", request.scope)

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def docs() -> Response:
        response = get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Piggyback",
            swagger_js_url="swagger/swagger-ui-bundle.js",
            swagger_css_url="swagger/swagger-ui.css",
            swagger_favicon_url="page/icon.svg",
        )
        response.headers["content-security-policy"] = DOCS_POLICY
        return response

    app.mount("/page", page)
    app.mount("/swagger", StaticFiles(packages=[("fastapi_swagger", "resources")]))
