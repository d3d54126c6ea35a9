"""A fake server for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fake_server import FakeServer, as_a_server, serving
from piggyback.client import Client


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeServer(as_a_server)) as fake:
        yield fake


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    with Client(server.url, timeout=20) as made:
        yield made
