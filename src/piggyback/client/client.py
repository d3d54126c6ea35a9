"""The client: methods as the engine has them, each one request or a few."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib.parse import urlencode

from piggyback.client.address import parse_url
from piggyback.client.connections import Connections, Reply
from piggyback.client.images import encoded, is_batch, multipart
from piggyback.client.refusals import can_be_asked_again, content_of, retry_after, strange
from piggyback.errors import (
    DeadlineError,
    InputError,
    ServerError,
    TaskNameError,
    UnavailableError,
    UnknownTaskError,
)
from piggyback.names import is_token
from piggyback.schemas import Answer, TaskStatus
from piggyback.taskfile.disk import naming
from piggyback.taskfile.header import read_whole
from piggyback.taskfile.task import check_name

T = TypeVar("T")

IMAGES_A_REQUEST = 16
BYTES_A_REQUEST = 8 * 2**20
"""A longer list of images goes out in several requests, none above these; a single image may be larger."""


class Client:
    """Asks a Piggyback server; usable from any number of threads, as a context manager or until ``close``.

    Answers and errors are the engine's own classes: UnknownTaskError with near misses, DataError for what is no
    image, OverloadError, DeadlineError, UnavailableError. A server that cannot be reached raises ServerError, one
    that wants a token AccessError.

    An image is a path, the bytes of an image file, a PIL image, a uint8 array (h, w, 3) or tensor (3, h, w);
    several are a list, or an array with a dimension more.

    ``timeout``: seconds to connect and to wait for an answer, for each try. ``retries``: how often a request is
    sent again to a server that is busy or still starting, after the time that it asks for. Environment variables
    for proxies are not looked at.

    >>> Client("http://127.0.0.1:8000")
    Client('http://127.0.0.1:8000')
    """

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 30.0, retries: int = 2
    ) -> None:
        if not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
            raise InputError(f"timeout {timeout!r}: expected seconds above 0")
        if not isinstance(retries, int) or retries < 0:
            raise InputError(f"retries {retries!r}: expected an integer from 0")
        self.url = str(parse_url(url))
        self.retries = retries
        self._headers = {"Accept": "application/json", **_authorization(token)}
        self._connections = Connections(parse_url(url), float(timeout))

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used after that."""
        self._connections.close()

    @overload
    def predict(
        self, images: str | bytes | os.PathLike[str], task: str | None = None, top_k: int = 5
    ) -> Answer: ...
    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], task: str | None = None, top_k: int = 5
    ) -> list[Answer]: ...
    @overload
    def predict(self, images: Any, task: str | None = None, top_k: int = 5) -> Any: ...
    def predict(self, images: Any, task: str | None = None, top_k: int = 5) -> Any:
        """Return the answer of ``task`` for an image, or a list of answers for several images.

        Without a task, each image's answer is that of the task that is surest of it.
        """
        if task is None:
            read = _surest
            path = _with("/v1/predict", top_k=top_k)
        else:
            read = _answers
            path = _with(f"/v1/tasks/{_asked(task)}/predict", top_k=top_k)
        if not is_batch(images):
            return self._ask(path, [encoded(images)], read)[0]
        if not len(images):
            raise InputError("no images: expected one or more")
        groups = _grouped(encoded(image) for image in images)
        return [answer for group in groups for answer in self._ask(path, group, read)]

    def infer(self, image: Any, tasks: Sequence[str] | None = None, top_k: int = 5) -> list[Answer]:
        """Return the answers of several tasks for one image, surest first; of all tasks if none is named."""
        if isinstance(tasks, str) or (tasks is not None and not tasks):
            raise InputError(f"tasks {tasks!r}: expected a list of names, or None for all")
        named = [("task", _asked(name)) for name in tasks or ()]
        path = _with("/v1/predict", *named, top_k=top_k)
        found: list[Answer] = self._ask(path, [encoded(image)], _all_of_one)
        return found

    def tasks(self) -> list[TaskStatus]:
        """Return the tasks that the server answers for, by name."""
        return self._json(
            "GET",
            "/v1/tasks",
            lambda found: [TaskStatus.model_validate(one) for one in found["tasks"]],
        )

    def task(self, name: str) -> TaskStatus:
        """Return the state of one task."""
        return self._json("GET", f"/v1/tasks/{_asked(name)}", TaskStatus.model_validate)

    def put_task(self, name: str, file: str | os.PathLike[str] | bytes) -> TaskStatus:
        """Add or replace a task, from a task file or its bytes; the server must know the client's token."""
        check_name(name)
        if isinstance(file, (bytes, bytearray, memoryview)):
            data = bytes(file)
        else:
            with naming(file):
                data = read_whole(Path(file))
        return self._json("PUT", f"/v1/tasks/{name}", TaskStatus.model_validate, data)

    def delete_task(self, name: str) -> None:
        """Remove a task and its file; the server must know the client's token."""
        path = f"/v1/tasks/{_asked(name)}"
        content_of(self._send("DELETE", path), self.url)

    def ready(self) -> bool:
        """Return whether the server is there and answers."""
        return self._state()[0] == "ready"

    def wait(self, timeout: float = 60.0) -> None:
        """Return once the server is ready.

        Raises UnavailableError for a server that has failed to start, and DeadlineError after ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while (found := self._state())[0] != "ready":
            if found[0] == "failed":
                raise UnavailableError(f"server {self.url}: it failed to start: {found[1]}")
            if time.monotonic() > end:
                raise DeadlineError(
                    f"server {self.url}: not ready after {timeout:g} seconds; {found[1] or found[0]}"
                )
            time.sleep(0.1)

    def _state(self) -> tuple[str, str]:
        """What the server says about itself, and why."""
        try:
            reply = self._connections.send("GET", "/health", None, self._headers, again=True)
        except (ServerError, DeadlineError) as error:
            return "away", str(error)
        try:
            found = json.loads(reply.body)
            return str(found["status"]), str(found.get("reason", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return "strange", str(strange(reply, self.url))

    def _ask(
        self, path: str, images: Sequence[tuple[str, bytes]], read: Callable[[Any], list[Answer]]
    ) -> list[Answer]:
        """The answers to one request: the image itself if it is one, a form if they are more."""
        kind, body = images[0] if len(images) == 1 else multipart(images)
        found = self._json("POST", path, read, body, kind)
        if read is not _all_of_one and len(found) != len(images):
            raise ServerError(
                f"server {self.url}: expected {len(images)} answers, found {len(found)}"
            )
        return found

    def _json(
        self,
        method: str,
        path: str,
        read: Callable[[Any], T],
        body: bytes | None = None,
        kind: str = "application/octet-stream",
    ) -> T:
        reply = self._send(method, path, body, kind)
        content = content_of(reply, self.url)
        try:
            return read(content)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise strange(reply, self.url) from error

    def _send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "application/octet-stream",
    ) -> Reply:
        """One request, again while the server says that it did nothing and will soon."""
        headers = self._headers if body is None else {**self._headers, "Content-Type": kind}
        again = method in ("GET", "POST")  # here a POST asks and changes nothing
        for left in range(self.retries, -1, -1):
            reply = self._connections.send(method, path, body, headers, again)
            if not (again and left and can_be_asked_again(reply)):
                break
            pause = retry_after(reply)
            if pause > self._connections.timeout:
                break
            time.sleep(pause)
        return reply


def _authorization(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    if not is_token(token):
        raise InputError("token: expected printable ASCII without spaces")  # and it is not shown
    return {"Authorization": f"Bearer {token}"}


def _asked(task: str) -> str:
    """A task's name; one that cannot be a name, and so no part of a path either, does not go out."""
    try:
        return check_name(task)
    except TaskNameError as error:
        raise UnknownTaskError(f"{error}; it can be no task of a server") from error


def _with(path: str, *pairs: tuple[str, str], top_k: int) -> str:
    if not isinstance(top_k, int) or top_k < 1:
        raise InputError(f"top_k {top_k!r}: expected an integer from 1")
    return f"{path}?{urlencode([*pairs, ('top_k', str(top_k))])}"


def _grouped(
    images: Iterator[tuple[str, bytes]],
) -> Iterator[list[tuple[str, bytes]]]:
    """Images in groups of a size that a server takes."""
    group: list[tuple[str, bytes]] = []
    size = 0
    for image in images:
        size += len(image[1])
        if group and (len(group) == IMAGES_A_REQUEST or size > BYTES_A_REQUEST):
            yield group
            group, size = [], len(image[1])
        group.append(image)
    if group:
        yield group


def _answers(found: Any) -> list[Answer]:
    return [Answer.model_validate(one) for one in found["answers"]]


def _surest(found: Any) -> list[Answer]:
    return [Answer.model_validate(one["answers"][0]) for one in found["images"]]


def _all_of_one(found: Any) -> list[Answer]:
    (image,) = found["images"]
    return _answers(image)
