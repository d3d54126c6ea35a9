"""Every error as one answer: ``{"error": {"code": "...", "message": "<one line>"}}``."""

from __future__ import annotations

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

CODES = {404: "not_found", 405: "method_not_allowed", 421: "wrong_host", 500: "internal"}
"""Of the statuses that none of this library's errors has."""


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
    code = code or CODES.get(status, "bad_request")
    body = ErrorBody(
        error=ErrorDetail(code=code, message=line, request_id=request_id), errors=list(errors)
    )
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
    @app.exception_handler(ValidationError)
    async def invalid(request: Request, error: Any) -> Response:
        return await ours(request, _first(error.errors()[0]))

    @app.exception_handler(HTTPException)
    async def theirs(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        message = str(error.detail)
        if message == "Not Found":
            message = f"no such path {request.url.path[:80]!r}; see /openapi.json"
        elif error.status_code == 405:
            # Starlette names the methods of the first route alone; a path has one route for each.
            alike = [one for one in routes if one.matches(request.scope)[0] is Match.PARTIAL]
            methods = {m for one in alike if isinstance(one, Route) for m in one.methods or ()}
            headers["Allow"] = ", ".join(sorted(methods)) or headers.get("Allow", "")
            message = f"{request.method[:20]} is not for this path: expected {headers['Allow']}"
        request.state.code = CODES.get(error.status_code, "bad_request")
        return error_response(error.status_code, message, request.state.code, headers)


def _first(found: Mapping[str, Any]) -> PiggybackError:
    """What validation found first, as an error of ours."""
    cause = found.get("ctx", {}).get("error")
    where = ".".join(str(part) for part in found["loc"] if part not in ("query", "path"))
    if found["type"] in ("json_invalid", "model_type"):
        return MalformedJsonError(f"the body is not the JSON expected: {cause or found['msg']}")
    if isinstance(cause, BadRequestError):
        return type(cause)(f"{where}: {cause}")
    if isinstance(cause, PiggybackError):
        return cause
    if found["type"] == "extra_forbidden":
        return InputError(f"field {where[:40]!r}: there is none of this name; see /openapi.json")
    return InputError(f"{where}: {found['msg']}, found {repr(found['input'])[:60]}")
