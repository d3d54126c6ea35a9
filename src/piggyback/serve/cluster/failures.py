"""Errors on their way from one process to another, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from piggyback import errors
from piggyback.errors import OverloadError, PiggybackError


@dataclass(frozen=True)
class Failure:
    """An error a user can meet. Ray would wrap a raised one, with its traceback, and log it."""

    kind: str
    """Name of its class in `piggyback.errors`."""
    message: str
    retry_after: float = 0.0

    @classmethod
    def of(cls, error: PiggybackError) -> Failure:
        """Return what carries ``error``.

        >>> Failure.of(OverloadError("too many", 2.0))
        Failure(kind='OverloadError', message='too many', retry_after=2.0)
        """
        return cls(type(error).__name__, str(error), error.retry_after or 0.0)

    def error(self) -> PiggybackError:
        """Return the error again, to be raised here.

        >>> Failure("InputError", "no images").error()
        InputError('no images')
        """
        if self.kind == OverloadError.__name__:
            return OverloadError(self.message, self.retry_after)
        kind: type[PiggybackError] = getattr(errors, self.kind)
        return kind(self.message)
