"""A fake server for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from piggyback.client import Client
from support.fake_server import FakeServer, as_a_server, serving


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(as_a_server)) as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.url, timeout=20) as made:
        yield made
