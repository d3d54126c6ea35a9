"""Every error as a status, a code and one line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from piggyback.errors import PiggybackError


class RefusedError(PiggybackError):
    """What a client is told instead of an answer."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
        self.code = code  # type: ignore[misc]
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return the body's JSON values."""
        return {"error": {"code": self.code, "message": str(self)}}


def refusal(error: PiggybackError) -> RefusedError | None:
    """Return what a client is told about ``error``; None for one that no client can be told about.

    >>> from piggyback.errors import UnknownTaskError
    >>> refusal(UnknownTaskError("no task 'sings'")).status
    404
    """
    if isinstance(error, RefusedError):
        return error
    if error.http_status == 500:
        return None
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return RefusedError(error.http_status, error.code, str(error), headers)


def too_large(what: str) -> RefusedError:
    """Return the refusal of a request that is more than the server takes."""
    return RefusedError(413, "too_large", what)


def invalid(what: str) -> RefusedError:
    """Return the refusal of a well-formed request that asks for something impossible."""
    return RefusedError(422, "invalid", what)
