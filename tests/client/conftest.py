"""A fake server for each test, and both clients of it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

from piggyback.client import AsyncClient, Client
from support.fake_server import FakeServer, as_a_server, serving


class Blocking:
    """An ``AsyncClient`` that is called as a ``Client`` is."""

    def __init__(self, url: str, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = AsyncClient(url, **options)

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            found = getattr(self.client, name)(*args, **options)
            return self.loop.run_until_complete(found) if inspect.isawaitable(found) else found

        return call

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.loop.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(as_a_server)) as fake:
        yield fake


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Any:
    """Makes one of the two clients."""
    return request.param


@pytest.fixture
def client(server: FakeServer, make: Any) -> Iterator[Client]:
    with make(server.url, timeout=60) as made:
        yield made
