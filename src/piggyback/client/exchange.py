"""What goes out to a server and how its answers are read, whoever sends: generators that yield requests and pauses."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import TIMEOUT_MAX
from typing import Any, NamedTuple, TypeAlias, TypeVar

import httpx2 as httpx

from piggyback.client.images import TEXT, encode, is_batch
from piggyback.errors import (
    ERRORS_BY_CODE,
    ClosedError,
    DataError,
    DeadlineError,
    InputError,
    PiggybackError,
    ServerError,
    TaskNameError,
    UnavailableError,
    UnknownTaskError,
    check_is,
    check_number,
)
from piggyback.names import check_name, check_several, is_token, plain
from piggyback.schemas import (
    Answer,
    Answers,
    ErrorBody,
    Health,
    ImageError,
    Inference,
    Inferences,
    TaskList,
    TaskStatus,
)
from piggyback.taskfile.disk import error_context
from piggyback.taskfile.header import read_whole

IMAGES_A_REQUEST = 16
BYTES_A_REQUEST = 8 * 2**20
"""A longer list of images goes out in several requests, none above these; a single image may be larger."""
MAX_NAME = 255
"""Letters of a file's name that go out with it, its last ones."""
_SHOWN = 200
"""Characters of an answer that is not one of ours."""
LONGEST_PAUSE_S = 3600.0
"""For which a busy server is waited for, where nothing bounds an answer's time."""
_POLL_S = 0.1
"""Seconds between two looks at a server that is not ready."""
FAILURES = (httpx.RequestError, UnicodeError)
"""What sending raises and an ``Exchange`` is sent; the latter for a host name that cannot be one."""
_BROKEN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""How httpx says that the server closed a connection."""


class Request(NamedTuple):
    """What to send, as ``httpx.Client.request`` takes it."""

    method: str
    path: str
    options: dict[str, Any]


class Image(NamedTuple):
    """An image as it goes out."""

    name: str
    kind: str
    data: bytes


T = TypeVar("T")
Flow: TypeAlias = Generator[Request | float, Any, T]
"""Yields requests, and is sent the answer or httpx's error; or seconds to wait. Returns what was asked for."""


class Exchange:
    """What both clients share, all but sending and waiting: ``_predict`` is what ``Client.predict`` asks."""

    _kind: Any
    """The client of httpx."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float | httpx.Timeout = 30.0,
        retries: int = 2,
        **options: Any,
    ) -> None:
        number = isinstance(timeout, (int, float)) and 0 < timeout <= TIMEOUT_MAX
        if not number and not isinstance(timeout, httpx.Timeout):
            raise InputError(f"timeout {timeout!r}: expected seconds above 0")
        if type(retries) is not int or retries < 0:
            raise InputError(f"retries {retries!r}: expected an integer from 0")
        if token is not None and not is_token(token):
            raise InputError("token: expected printable ASCII without spaces")  # it is not shown
        self.url = check_url(url)
        self.retries = retries
        self._timeout = httpx.Timeout(timeout)
        headers = httpx.Headers(options.pop("headers", None))
        headers.setdefault("Accept", "application/json")
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._options = {"trust_env": False, **options, "headers": headers}
        self._connect()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        """All but the connections: a copy, and a client sent to another process, have their own."""
        return {name: value for name, value in vars(self).items() if name != "_http"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._connect()

    def _connect(self) -> None:
        self._http = self._kind(base_url=self.url, timeout=self._timeout, **self._options)
        self._place: Any = None

    def _here(self) -> Any:
        """Where connections can be used."""
        return os.getpid()

    def _open(self) -> Any:
        """The client of httpx; a new one after a fork, where two processes would read each other's answers."""
        if self._http.is_closed:
            raise ClosedError(f"client of {self.url}: it was closed; make a new one")
        if self._place not in (None, here := self._here()):
            self._connect()
        self._place = here
        return self._http

    # -- what each method asks --------------------------------------------------------------------

    def _predict(
        self, images: Any, task: str | None, top_k: int, at_least: float | None, return_errors: bool
    ) -> Flow[Any]:
        path = "/v1/predict" if task is None else f"/v1/tasks/{_name(task)}/predict"
        if task is not None and at_least is not None:
            raise InputError(
                f"at_least {at_least!r} with task {task!r}: it is for the choice among tasks; leave one out"
            )
        several = is_batch(images)
        if several and not len(images):
            raise InputError("no images: expected one or more")
        params: dict[str, Any] = {"top_k": _count(top_k)}
        if task is None and at_least is not None:
            params["at_least"] = at_least
        keep = several and return_errors
        answers: list[Answer | DataError | None] = []
        for group in _grouped(_encoded(images if several else [images], keep)):
            left = [image for image in group if not isinstance(image, DataError)]
            found = (yield from self._group(path, task, params, left, keep)) if left else []
            in_order = iter(found)
            answers += [one if isinstance(one, DataError) else next(in_order) for one in group]
        return answers if several else answers[0]

    def _group(
        self, path: str, task: str | None, params: dict[str, Any], images: list[Image], keep: bool
    ) -> Flow[list[Answer | DataError | None]]:
        """One request's answers, in order; where no task is named, that of the surest, None if none is sure.

        An image that the server cannot use has its DataError in its place if ``keep``, else the first is raised.
        """
        sent = {"params": params, **_content(images)}
        errors: Sequence[ImageError]
        found: list[Answer | DataError | None]
        try:
            if task is None:
                inferred = yield from self._ask("POST", path, Inferences, **sent)
                errors = inferred.errors
                found = [one and _of_task(one) for one in inferred.images]
            else:
                # A cluster brings the request to a replica that has the task: docs/CLUSTER.md.
                sent["headers"] = {**sent.get("headers", {}), "serve-multiplexed-model-id": task}
                told = yield from self._ask("POST", path, Answers, **sent)
                errors, found = told.errors, list(told.answers)
        except DataError as error:
            if not keep or len(error.each or images) != len(images):
                raise
            if not error.each:  # the only image
                return [error]
            errors, found = error.each, [None] * len(images)
        self._check_count(len(found), len(images))
        for one in errors:
            kind = ERRORS_BY_CODE.get(one.code, DataError)
            name = "" if one.file is None else f"{one.file!r}: "
            bad = kind(f"{name}{one.message}")
            if not keep or not isinstance(bad, DataError) or not 0 <= one.index < len(found):
                raise bad
            found[one.index] = bad
        return found

    def _infer(self, image: Any, tasks: Sequence[str] | None, top_k: int) -> Flow[list[Answer]]:
        names = [] if tasks is None else check_several(tasks)
        query = {"task": [_name(name) for name in names], "top_k": _count(top_k)}
        content = _content([Image("0", *encode(image))])
        found = yield from self._ask("POST", "/v1/predict", Inferences, params=query, **content)
        self._check_count(len(found.images), 1)
        return list(found.images[0].answers if found.images[0] else [])

    def _tasks(self) -> Flow[list[TaskStatus]]:
        return list((yield from self._ask("GET", "/v1/tasks", TaskList)).tasks)

    def _task(self, name: str) -> Flow[TaskStatus]:
        return self._ask("GET", f"/v1/tasks/{_name(name)}", TaskStatus)

    def _put_task(
        self, name: str, file: str | os.PathLike[str] | bytes, replace_classes: bool
    ) -> Flow[TaskStatus]:
        check_name(name)
        check_is("replace_classes", replace_classes, bool, "True or False")
        if isinstance(file, (bytes, bytearray, memoryview)):
            data = bytes(file)
        else:
            with error_context(file):
                data = read_whole(Path(file))
        headers = {"Content-Type": "application/octet-stream"}
        path = f"/v1/tasks/{name}" + "?replace=classes" * replace_classes
        return self._ask("PUT", path, TaskStatus, content=data, headers=headers)

    def _delete_task(self, name: str) -> Flow[Any]:
        return self._ask("DELETE", f"/v1/tasks/{_name(name)}", None)

    def _health(self) -> Flow[Health]:
        """What the server says about itself; one that is away may still be starting."""
        response = yield Request("GET", "/health", {})
        if isinstance(response, Exception):
            why = self._failure("GET", "/health", response)
        else:
            try:
                return Health.model_validate_json(response.content)
            except ValueError:
                why = self._strange(response)
        return Health(status="starting", reason=str(why))

    def _wait(self, timeout: float) -> Flow[None]:
        check_number("timeout", timeout, lambda seconds: seconds >= 0, "seconds, 0 or more")
        end = time.monotonic() + timeout
        while (found := (yield from self._health())).status != "ready":
            why = found.reason or found.status
            if found.status == "failed":
                raise UnavailableError(f"server {self.url}: it failed to start: {why}")
            if time.monotonic() > end:
                raise DeadlineError(
                    f"server {self.url}: not ready after {timeout:g} seconds; {why}"
                )
            yield _POLL_S

    # -- one request, and what comes back ---------------------------------------------------------

    def _ask(self, method: str, path: str, model: Any, **options: Any) -> Flow[Any]:
        """The answer to a request, as ``model``; raises what a refusal stands for.

        A server that is busy or starting has done nothing, and says when to ask again; nobody waits longer for that
        than for an answer. An idle connection may be closed at the moment a request goes out on it: then it goes
        out once more. What may have changed something is never sent twice.
        """
        harmless = method in ("GET", "POST")  # a POST asks here, and changes nothing
        patience = self._timeout.read or LONGEST_PAUSE_S
        broken, left = False, self.retries
        while True:
            response = yield Request(method, path, options)
            if isinstance(response, Exception):
                if broken or not harmless or not isinstance(response, _BROKEN):
                    raise self._failure(method, path, response) from response
                broken = True
                continue
            pause = _retry_after(response)
            busy = response.status_code in (429, 503) and 0 <= pause <= patience
            if not (busy and harmless and left):
                return self._read(response, model)
            yield pause
            left -= 1

    def _read(self, response: httpx.Response, model: Any) -> Any:
        try:
            if response.is_success:
                return model and model.model_validate_json(response.content)
            body = ErrorBody.model_validate_json(response.content)
        except ValueError as error:  # pydantic's is one
            raise self._strange(response) from error
        refusal = body.error
        kind = ERRORS_BY_CODE.get(refusal.code)
        if kind is None:
            raise ServerError(
                f"server {self.url}: refused with {response.status_code} {refusal.code}: "
                f"{refusal.message}"
            )
        made = kind(refusal.message)
        made.retry_after = pause if (pause := _retry_after(response)) >= 0 else made.retry_after
        if isinstance(made, DataError):
            made.each = body.errors
        raise made

    def _check_count(self, found: int, expected: int) -> None:
        if found != expected:
            raise ServerError(f"server {self.url}: expected {expected} answers, found {found}")

    def _strange(self, response: httpx.Response) -> ServerError:
        place = response.headers.get("location")
        moved = f", which points to {place!r}" if place else ""
        text = " ".join(response.content[: 4 * _SHOWN].decode("utf-8", "replace").split())[:_SHOWN]
        return ServerError(
            f"server {self.url}: expected a Piggyback server's answer, found status "
            f"{response.status_code}{moved} and {text!r}; check the URL"
        )

    def _failure(self, method: str, path: str, error: Exception) -> PiggybackError:
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            limit = self._timeout.read or 0
            return DeadlineError(
                f"server {self.url}: no answer to {method} {path} in {limit:g} seconds"
            )
        if isinstance(error, (httpx.ConnectError, httpx.ProxyError, UnicodeError)):
            return ServerError(
                f"server {self.url}: cannot be reached ({why}); is it running, and is the URL right?"
            )
        return ServerError(
            f"server {self.url}: broke off at {method} {path} ({why}); is it stopping, or not an "
            "HTTP server?"
        )


def check_url(url: str) -> str:
    """Return the URL of a server, as httpx writes it; raises InputError unless it is a plain http or https URL.

    >>> check_url("HTTPS://Models.example/vision/")
    'https://models.example/vision'
    """
    why = ""
    try:
        parts = httpx.URL(url)
        port = 1 if parts.port is None else parts.port
        good = parts.scheme in ("http", "https") and parts.host and 1 <= port < 65536
    except (httpx.InvalidURL, TypeError) as error:
        parts, good, why = httpx.URL(), False, f" ({error})"
    if parts.userinfo:
        # The URL is not shown: there may be a password in it.
        raise InputError(
            f"URL of {parts.host!r}: expected no user name or password in it; a token goes into `token`"
        )
    if not good or set("?# ") & set(url):
        raise InputError(
            f"URL {url!r}: expected http:// or https://, a host, and nothing after the path, such as "
            f"http://127.0.0.1:8000{why}"
        )
    return str(parts).rstrip("/")


def _name(task: str) -> str:
    """A task's name; one that cannot be a name, and so no part of a path either, does not go out."""
    try:
        return check_name(task)
    except TaskNameError as error:
        raise UnknownTaskError(f"{error}; a server can have no such task") from error


def _count(top_k: int) -> int:
    if type(top_k) is not int or top_k < 1:
        raise InputError(f"top_k {top_k!r}: expected an integer from 1")
    return top_k


def _of_task(one: Inference) -> Answer | None:
    return one.answers[0] if one.task is not None and one.answers else None


def _encoded(images: Iterable[Any], keep: bool) -> Iterator[Image | DataError]:
    """Images as they go out; if ``keep``, the error of one that cannot be read in its place."""
    for at, image in enumerate(images):
        name = Path(image).name if isinstance(image, (str, os.PathLike)) else str(at)
        try:
            yield Image(plain(name)[-MAX_NAME:], *encode(image))
        except DataError as error:
            if not keep:
                raise
            yield error


def _grouped(images: Iterable[Image | DataError]) -> Iterator[list[Image | DataError]]:
    """Images in groups of a size that a server takes."""
    group: list[Image | DataError] = []
    size = 0
    for image in images:
        more = 0 if isinstance(image, DataError) else len(image.data)
        size += more
        if group and (len(group) == IMAGES_A_REQUEST or size > BYTES_A_REQUEST):
            yield group
            group, size = [], more
        group.append(image)
    if group:
        yield group


def _content(images: Sequence[Image]) -> dict[str, Any]:
    """A request's body: the image or text itself if it is one, else a form of images or JSON of texts."""
    if len(images) == 1:
        return {"content": images[0].data, "headers": {"Content-Type": images[0].kind}}
    texts = [one.data.decode() for one in images if one.kind == TEXT]
    if texts and len(texts) < len(images):
        raise InputError("texts and images in one call: expected one of them")
    if texts:
        return {"json": {"texts": texts}}
    return {"files": [("image", (one.name, one.data, one.kind)) for one in images]}


def _retry_after(response: httpx.Response) -> float:
    """Seconds after which the server wants to be asked again, which it may say as a date; -1 where it does not say."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return -1.0
    return max(0.0, (date - datetime.now(date.tzinfo)).total_seconds())
