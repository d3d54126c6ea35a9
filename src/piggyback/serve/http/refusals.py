"""Every error as a status, a code and one line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping

from piggyback.errors import (
    BackboneMismatchError,
    ClosedError,
    DataError,
    DeadlineError,
    InputError,
    OverloadError,
    PiggybackError,
    TaskFileError,
    TaskNameError,
    TooLargeError,
    UnavailableError,
    UnknownTaskError,
)

STATUSES: Mapping[type[PiggybackError], tuple[int, str]] = {
    UnknownTaskError: (404, "unknown_task"),
    TaskNameError: (422, "bad_task_name"),
    TaskFileError: (422, "bad_task_file"),
    BackboneMismatchError: (422, "wrong_backbone"),
    InputError: (422, "invalid"),
    DataError: (400, "bad_image"),
    TooLargeError: (413, "too_large"),
    OverloadError: (429, "overload"),
    DeadlineError: (504, "timeout"),
    ClosedError: (503, "stopping"),
    UnavailableError: (503, "unavailable"),
}
"""What the library's errors are to a client; an error of none of these types is the server's own fault."""


class RefusedError(PiggybackError):
    """What a client is told instead of an answer."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, dict[str, str]]:
        """Return the body's JSON values."""
        return {"error": {"code": self.code, "message": str(self)}}


def refusal(error: PiggybackError) -> RefusedError | None:
    """Return what a client is told about ``error``; None for one that no client can be told about.

    >>> refusal(UnknownTaskError("no task 'sings'")).status
    404
    """
    if isinstance(error, RefusedError):
        return error
    for kind in type(error).__mro__:
        if kind in STATUSES:
            status, code = STATUSES[kind]
            headers = {}
            if isinstance(error, OverloadError):
                headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
            return RefusedError(status, code, str(error), headers)
    return None


def too_large(what: str) -> RefusedError:
    """Return the refusal of a request that is more than the server takes."""
    return RefusedError(413, "too_large", what)


def invalid(what: str) -> RefusedError:
    """Return the refusal of a well-formed request that asks for something impossible."""
    return RefusedError(422, "invalid", what)
