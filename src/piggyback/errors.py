"""Errors a user can meet: each is one line that names the thing, what was expected and found, and what to do."""

from __future__ import annotations

import difflib
import heapq
import importlib
from collections.abc import Iterable
from types import ModuleType

MOST_COMPARED = 100
"""Names that an unknown one is compared with: all of thousands would take too long for a server."""


class PiggybackError(Exception):
    """Base of every error this library raises on purpose; the command line prints it as one line."""


class SelectionError(PiggybackError, ValueError):
    """A selection of weights matches nothing, or something that cannot be masked."""


class TaskNameError(PiggybackError, ValueError):
    """A task name that is taken, or that could not be a file name."""


class UnknownTaskError(PiggybackError, KeyError):
    """A task name that the model does not hold."""

    __str__ = Exception.__str__  # KeyError would print the message's repr


class TaskStateError(PiggybackError, RuntimeError):
    """A call that does not fit what the model is doing, such as switching tasks in mid-training."""


class TaskFileError(PiggybackError, ValueError):
    """A task file that is damaged, hostile, or of a version this library does not know."""


class BackboneError(PiggybackError):
    """A backbone that cannot be built or whose weights cannot be had."""


class BackboneMismatchError(BackboneError, ValueError):
    """A task that was learned on other weights than those it is applied to."""


class DataError(PiggybackError, ValueError):
    """Images or folders that cannot be used as they are."""


class TooLargeError(DataError):
    """An image of more pixels than may be taken."""


class ManifestError(PiggybackError, ValueError):
    """An experiment's manifest says something that does not exist."""


class InputError(PiggybackError, ValueError):
    """An argument or a tensor of the wrong kind, shape or dtype."""


class TrainingError(PiggybackError, RuntimeError):
    """Training that cannot go on, such as a loss that is not a number."""


class CheckpointError(PiggybackError, ValueError):
    """A checkpoint that is damaged or belongs to another run."""


class OverloadError(PiggybackError, RuntimeError):
    """More requests are waiting than may; ask again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(PiggybackError, TimeoutError):
    """A request was not answered in its time."""


class ClosedError(PiggybackError, RuntimeError):
    """A request to an engine that is stopping or has stopped."""


class UnavailableError(PiggybackError, RuntimeError):
    """A task that is known but cannot be had now: its disk is gone, or memory is short."""


class AccessError(PiggybackError, PermissionError):
    """A server that wants a token, or another one than was given."""


class ServerError(PiggybackError, ConnectionError):
    """A server that cannot be reached, or whose answer is none that a Piggyback server gives."""


class MissingExtraError(PiggybackError, ImportError):
    """An optional package is needed and not installed."""


class PiggybackWarning(UserWarning):
    """Something the user should know that does not stop the work."""


def require(module: str, extra: str) -> ModuleType:
    """Return the imported optional ``module``, or say which extra installs it.

    >>> require("json", "text").__name__
    'json'
    >>> require("no_such_module", "onnx")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    piggyback.errors.MissingExtraError: 'no_such_module' is needed for this and not installed; run: pip install ...
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module!r} is needed for this and not installed; "
            f'run: pip install "torch-piggyback[{extra}]"'
        ) from error


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
