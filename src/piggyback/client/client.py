"""Clients: methods as the engine has them; ``Client`` sends requests and waits, ``AsyncClient`` awaits."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, TypeVar, cast, overload

import anyio
import httpx2 as httpx
from anyio.lowlevel import RunVar

from piggyback.client.exchange import FAILURES, Exchange, Flow, Request
from piggyback.schemas import Answer, TaskStatus

T = TypeVar("T")
_LOOP: RunVar[object] = RunVar("piggyback_loop")


class Client(Exchange):
    """Asks a Piggyback server; usable from any number of threads, as a context manager or until ``close``.

    Answers and errors are the engine's own classes: UnknownTaskError with near misses, DataError for what is not
    an image, OverloadError, DeadlineError, UnavailableError. A server that cannot be reached raises ServerError, one
    that wants a token AccessError.

    An image is a path, the bytes of an image file, a PIL image, a uint8 array (h, w, 3) or tensor (3, h, w);
    several are a list, or an array with a dimension more.

    ``timeout``: seconds to connect and to wait for an answer, for each try; or an ``httpx2.Timeout``. ``retries``:
    how often a request is sent again to a server that is busy or still starting, after the time that it asks for.
    All other options are those of ``httpx2.Client``: ``verify`` for a CA of your own, ``cert`` for a client's
    certificate, ``proxy``, ``headers``, ``transport``, ``limits``. Proxies in environment variables are used only
    with ``trust_env=True``.

    >>> Client("http://127.0.0.1:8000")
    Client('http://127.0.0.1:8000')
    """

    _kind = httpx.Client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used after that."""
        self._http.close()

    @overload
    def predict(
        self, images: str | bytes | os.PathLike[str], task: str, top_k: int = 5
    ) -> Answer: ...
    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], task: str, top_k: int = 5
    ) -> list[Answer]: ...
    @overload
    def predict(
        self,
        images: Any,
        task: str | None = None,
        top_k: int = 5,
        at_least: float | None = None,
        return_errors: bool = False,
    ) -> Any: ...
    def predict(
        self,
        images: Any,
        task: str | None = None,
        top_k: int = 5,
        at_least: float | None = None,
        return_errors: bool = False,
    ) -> Any:
        """Return the answer of ``task`` for an image, or a list of answers for several images.

        A text goes in as ``Text("...")``, since a plain string is a path. Without a task, each answer is that of the
        task that is surest, or None if none has a confidence of ``at_least``, from 0 to 1; the server has a default.
        With ``return_errors`` an image of several that cannot be used has its DataError in its answer's place; else
        the first such error is raised.
        """
        return self._run(self._predict(images, task, top_k, at_least, return_errors))

    def infer(self, image: Any, tasks: Sequence[str] | None = None, top_k: int = 5) -> list[Answer]:
        """Return the answers of several tasks for one image, surest first; of all tasks if none is named."""
        return self._run(self._infer(image, tasks, top_k))

    def tasks(self) -> list[TaskStatus]:
        """Return the tasks that the server answers for, by name."""
        return self._run(self._tasks())

    def task(self, name: str) -> TaskStatus:
        """Return the state of one task."""
        return self._run(self._task(name))

    def put_task(
        self, name: str, file: str | os.PathLike[str] | bytes, replace_classes: bool = False
    ) -> TaskStatus:
        """Add or replace a task, from a task file or its bytes; the server must know the client's token.

        Raises OtherClassesError for other classes than those of the task it replaces, unless ``replace_classes``.
        """
        return self._run(self._put_task(name, file, replace_classes))

    def delete_task(self, name: str) -> None:
        """Remove a task and its file; the server must know the client's token."""
        self._run(self._delete_task(name))

    def ready(self) -> bool:
        """Return whether the server is there and answers."""
        return self._run(self._health()).status == "ready"

    def wait(self, timeout: float = 60.0) -> None:
        """Return once the server is ready.

        Raises UnavailableError for a server that has failed to start, and DeadlineError after ``timeout`` seconds.
        """
        self._run(self._wait(timeout))

    def _run(self, flow: Flow[T]) -> T:
        got: Any = None
        try:
            while True:
                step = flow.send(got)
                if isinstance(step, Request):
                    try:
                        got = self._open().request(step.method, step.path, **step.options)
                    except FAILURES as error:
                        got = error
                else:
                    time.sleep(step)
                    got = None
        except StopIteration as done:
            return cast(T, done.value)


class AsyncClient(Exchange):
    """``Client`` for asyncio and Trio: the same methods, awaited; options as ``httpx2.AsyncClient`` has them.

    >>> AsyncClient("http://127.0.0.1:8000", retries=0)
    AsyncClient('http://127.0.0.1:8000')
    """

    _kind = httpx.AsyncClient

    def _here(self) -> Any:
        """The process and the event loop, whose connections end with it."""
        loop = _LOOP.get(None)
        if loop is None:
            _LOOP.set(loop := object())
        return os.getpid(), loop

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client cannot be used after that."""
        if not self._http.is_closed:
            await self._open().aclose()

    async def predict(
        self,
        images: Any,
        task: str | None = None,
        top_k: int = 5,
        at_least: float | None = None,
        return_errors: bool = False,
    ) -> Any:
        """Return the answer of ``task`` for an image, or a list of answers: see ``Client.predict``."""
        return await self._run(self._predict(images, task, top_k, at_least, return_errors))

    async def infer(
        self, image: Any, tasks: Sequence[str] | None = None, top_k: int = 5
    ) -> list[Answer]:
        """Return the answers of several tasks for one image, surest first; of all tasks if none is named."""
        return await self._run(self._infer(image, tasks, top_k))

    async def tasks(self) -> list[TaskStatus]:
        """Return the tasks that the server answers for, by name."""
        return await self._run(self._tasks())

    async def task(self, name: str) -> TaskStatus:
        """Return the state of one task."""
        return await self._run(self._task(name))

    async def put_task(
        self, name: str, file: str | os.PathLike[str] | bytes, replace_classes: bool = False
    ) -> TaskStatus:
        """Add or replace a task, from a task file or its bytes."""
        return await self._run(self._put_task(name, file, replace_classes))

    async def delete_task(self, name: str) -> None:
        """Remove a task and its file."""
        await self._run(self._delete_task(name))

    async def ready(self) -> bool:
        """Return whether the server is there and answers."""
        return (await self._run(self._health())).status == "ready"

    async def wait(self, timeout: float = 60.0) -> None:
        """Return once the server is ready; errors as those of ``Client.wait``."""
        await self._run(self._wait(timeout))

    async def _run(self, flow: Flow[T]) -> T:
        got: Any = None
        try:
            while True:
                step = flow.send(got)
                if isinstance(step, Request):
                    try:
                        got = await self._open().request(step.method, step.path, **step.options)
                    except FAILURES as error:
                        got = error
                else:
                    await anyio.sleep(step)
                    got = None
        except StopIteration as done:
            return cast(T, done.value)
