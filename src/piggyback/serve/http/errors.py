"""Every error as one answer: ``{"error": {"code": "...", "message": "<one line>"}}``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route

from piggyback.errors import (
    AccessError,
    BadRequestError,
    DataError,
    InputError,
    MalformedJsonError,
    PiggybackError,
)
from piggyback.schemas import ErrorBody, ErrorDetail, ImageError

CODES = {404: "not_found", 405: "method_not_allowed", 421: "wrong_host", 503: "unavailable"}
"""Of statuses without an error of this library."""


def code_of(status: int) -> str:
    """Return the code of a status that comes without an error of this library.

    >>> code_of(404), code_of(418), code_of(502)
    ('not_found', 'bad_request', 'internal')
    """
    return CODES.get(status, "internal" if status >= 500 else "bad_request")


def error_response(
    status: int,
    message: str,
    code: str = "",
    headers: Mapping[str, str] | None = None,
    request_id: str | None = None,
    errors: Sequence[ImageError] = (),
) -> Response:
    """Return the answer of a request that went wrong."""
    line = " ".join(message.split())
    detail = ErrorDetail(code=code or code_of(status), message=line, request_id=request_id)
    body = ErrorBody(error=detail, errors=list(errors))
    text = body.model_dump_json(exclude_none=True)
    return Response(text, status, headers, media_type="application/json")


def answer_errors(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Let ``app`` answer this library's errors, Starlette's and those of validation in one format."""

    @app.exception_handler(PiggybackError)
    async def ours(request: Request, error: PiggybackError) -> Response:
        if error.http_status == 500:
            raise error  # the server's own fault: its text is for the log
        headers = {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        if error.http_status == AccessError.http_status:
            headers["WWW-Authenticate"] = "Bearer"
        request.state.code = error.code  # for the log
        each = error.each if isinstance(error, DataError) else ()
        return error_response(error.http_status, str(error), error.code, headers, errors=each)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return await ours(request, invalid_request(error))

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        if isinstance(
            error.__cause__, PiggybackError
        ):  # FastAPI's for all that reading a body raises
            return await ours(request, error.__cause__)
        headers = dict(error.headers or {})
        message = error.detail if isinstance(error.detail, str) else json.dumps(error.detail)
        # A route that was found may say it of what it was asked for.
        if message == "Not Found" and request.scope.get("route") is None:
            message = f"no such path {request.url.path[:80]!r}; see /openapi.json"
        elif error.status_code == 405:
            # Starlette names the methods of the first route alone; a path has one route for each.
            alike = [one for one in routes if one.matches(request.scope)[0] is Match.PARTIAL]
            methods = {m for one in alike if isinstance(one, Route) for m in one.methods or ()}
            headers["Allow"] = ", ".join(sorted(methods)) or headers.get("Allow", "")
            message = (
                f"{request.method[:20]} is not allowed on this path: expected {headers['Allow']}"
            )
        request.state.code = code_of(error.status_code)
        return error_response(error.status_code, message, request.state.code, headers)


def invalid_request(error: RequestValidationError | ValidationError) -> PiggybackError:
    """Return what validation found first in a request, as an error of ours."""
    found: Mapping[str, Any] = error.errors()[0]
    cause = found.get("ctx", {}).get("error")
    where = ".".join(str(part) for part in found["loc"] if part not in ("query", "path"))
    if found["type"] in ("json_invalid", "model_type"):
        return MalformedJsonError(f"the body is not the JSON expected: {cause or found['msg']}")
    if isinstance(cause, BadRequestError):
        return type(cause)(f"{where}: {cause}")
    if isinstance(cause, PiggybackError):
        return cause
    if found["type"] == "extra_forbidden":
        return InputError(f"unknown field {where[:40]!r}; see /openapi.json")
    return InputError(f"{where}: {found['msg']}, found {repr(found['input'])[:60]}")
