"""Errors a user can meet: each is one line that names the thing, what was expected and found, and what to do."""

from __future__ import annotations

import difflib
import heapq
import importlib
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

MOST_COMPARED = 100
"""Names that an unknown one is compared with: all of thousands would take too long for a server."""


class PiggybackError(Exception):
    """Base of every error this library raises on purpose; the command line prints it as one line."""

    code: ClassVar[str] = "internal"
    """What a server calls it and its client knows it by; what keeps the base's is the server's own fault."""
    http_status: ClassVar[int] = 500
    retry_after: float | None = None
    """Seconds after which it is worth asking again, where a server knows."""


class SelectionError(PiggybackError, ValueError):
    """A selection of weights matches nothing, or something that cannot be masked."""


class TaskNameError(PiggybackError, ValueError):
    """A task name that is taken, or that could not be a file name."""

    code, http_status = "bad_task_name", 422


class UnknownTaskError(PiggybackError, KeyError):
    """A task name that the model does not hold."""

    code, http_status = "unknown_task", 404
    __str__ = Exception.__str__  # KeyError would print the message's repr


class TaskStateError(PiggybackError, RuntimeError):
    """A call that does not fit what the model is doing, such as switching tasks in mid-training."""


class TaskFileError(PiggybackError, ValueError):
    """A task file that is damaged, hostile, or of a version this library does not know."""

    code, http_status = "bad_task_file", 422


class OtherClassesError(PiggybackError, ValueError):
    """A task file that would change the classes of the task it replaces, or their order, unasked."""

    code, http_status = "other_classes", 409


class BackboneError(PiggybackError):
    """A backbone that cannot be built or whose weights cannot be had."""


class BackboneMismatchError(BackboneError, ValueError):
    """A task that was learned on other weights than those it is applied to."""

    code, http_status = "wrong_backbone", 422


class DataError(PiggybackError, ValueError):
    """Images, texts or folders that cannot be used as they are."""

    code, http_status = "bad_image", 400
    each: Sequence[Any] = ()
    """A ``schemas.ImageError`` for each image, where several were sent to a server and it can use none."""


class TooLargeError(DataError):
    """An image of more pixels, a text of more letters, or a request of more bytes or images, than may be taken."""

    code, http_status = "too_large", 413


class ManifestError(PiggybackError, ValueError):
    """An experiment's manifest says something that does not exist."""


class InputError(PiggybackError, ValueError):
    """An argument or a tensor of the wrong kind, shape or dtype."""

    code, http_status = "invalid", 422


class BadRequestError(InputError):
    """A request to a server that cannot be read."""

    code, http_status = "bad_request", 400


class MalformedJsonError(BadRequestError):
    """A request's body that is not JSON, or not such as is taken."""

    code = "malformed_json"


class UnsupportedError(BadRequestError):
    """A request's body of a content type that is not taken."""

    code, http_status = "unsupported", 415


class TrainingError(PiggybackError, RuntimeError):
    """Training that cannot go on, such as a loss that is not a number."""


class CheckpointError(PiggybackError, ValueError):
    """A checkpoint that is damaged or belongs to another run."""


class OverloadError(PiggybackError, RuntimeError):
    """More requests are waiting than may; ask again after ``retry_after`` seconds."""

    code, http_status = "overload", 429

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after: float = retry_after


class DeadlineError(PiggybackError, TimeoutError):
    """A request was not answered in its time."""

    code, http_status = "timeout", 504


class SlowRequestError(DeadlineError):
    """A request's body did not arrive in its time."""

    code, http_status = "slow", 408


class ClosedError(PiggybackError, RuntimeError):
    """A request to an engine that is stopping or has stopped."""

    code, http_status, retry_after = "stopping", 503, 1.0


class UnavailableError(PiggybackError, RuntimeError):
    """A task that is known but cannot be had now: its disk is gone, or memory is short."""

    code, http_status = "unavailable", 503


class StartingError(UnavailableError):
    """A server that is still loading its network."""

    code, retry_after = "starting", 1.0


class StartFailedError(UnavailableError):
    """A server that could not load its network."""

    code = "failed"


class AccessError(PiggybackError, PermissionError):
    """A server that wants a token, or another one than was given."""

    code, http_status = "unauthorized", 401


class ForbiddenError(AccessError):
    """A server that lets nobody do this."""

    code, http_status = "forbidden", 403


class ServerError(PiggybackError, ConnectionError):
    """A server that cannot be reached, or whose answer is none that a Piggyback server gives."""


class MissingExtraError(PiggybackError, ImportError):
    """An optional package is needed and not installed."""


class PiggybackWarning(UserWarning):
    """Something the user should know that does not stop the work."""


ERRORS_BY_CODE: Mapping[str, type[PiggybackError]] = {
    kind.code: kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, PiggybackError)
    if "code" in vars(kind) and kind is not PiggybackError
}
"""What a client raises for the code that a server gave."""


def require(module: str, extra: str) -> ModuleType:
    """Return the imported optional ``module``, or say which extra installs it.

    >>> require("json", "text").__name__
    'json'
    >>> require("no_such_module", "onnx")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    piggyback.errors.MissingExtraError: 'no_such_module' is needed for this and not installed; run ...
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module!r} is needed for this and not installed; "
            f'run in a clone of Piggyback: pip install ".[{extra}]"'
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, for an error of one line.

    >>> first_line(ValueError("wrong\\nsee the manual"))
    'wrong'
    """
    return str(error).strip().split("\n")[0][:200]


def check_is(what: str, value: object, kind: type | tuple[type, ...], expected: str) -> None:
    """Raise InputError where an argument is of another type than the ``expected`` one.

    >>> check_is("recipe", {}, str, "a Recipe")
    Traceback (most recent call last):
    piggyback.errors.InputError: recipe {} of type dict: expected a Recipe
    """
    if not isinstance(value, kind):
        shown, found = " ".join(repr(value).split()), type(value).__name__
        raise InputError(f"{what} {shown:.100} of type {found}: expected {expected}")


def check_number(what: str, value: object, good: Callable[[Any], bool], expected: str) -> None:
    """Raise InputError where an argument is no number, or not one that is ``good``.

    >>> check_number("threshold", "1", lambda tau: tau > 0, "a number above 0")
    Traceback (most recent call last):
    piggyback.errors.InputError: threshold '1': expected a number above 0
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (number and good(value)):
        raise InputError(f"{what} {value!r:.100}: expected {expected}")


def near_misses(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'a', 'b'?"`` for known names close to ``name``, else ``""``.

    >>> near_misses("sings", ["signs", "letters"])
    "; did you mean 'signs'?"
    """

    def unlike(other: str) -> tuple[bool, int]:
        return other[:1] != name[:1], abs(len(other) - len(name))

    likeliest = heapq.nsmallest(MOST_COMPARED, known, key=unlike)
    close = difflib.get_close_matches(name, likeliest, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, close))}?" if close else ""
