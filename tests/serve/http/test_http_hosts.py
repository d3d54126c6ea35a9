"""Under which names a server on loopback answers."""

from __future__ import annotations

import threading

import httpx
import pytest

from piggyback.serve.http import server as serving
from piggyback.serve.http.app import create_app
from piggyback.serve.http.hosts import names_this_machine
from support.fake_engine import FakeEngine, connected, received, served, told, wait_until


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "10.0.0.7:8000", "[::1]",
     "[::1]:8000"],
)  # fmt: skip
def test_names_that_cannot_be_made_to_lead_here(host):
    assert names_this_machine(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
     "evil.example:127.0.0.1", "[::1].evil.example", "[localhost]", "localhost:80@evil.example",
     "127.0.0.1 ,evil.example", ":8000", "localhost."],
)  # fmt: skip
def test_names_that_can(host):
    assert not names_this_machine(host)


@pytest.fixture(scope="module")
def server():
    with served(FakeEngine()) as running:
        running.service.only_local = True
        yield running


@pytest.mark.parametrize("path", ["/", "/health", "/v1/tasks", "/metrics", "/nothing"])
def test_a_strangers_name_is_told_nothing(server, path):
    done = httpx.get(server.address + path, headers={"Host": "evil.example:8000"})
    assert (done.status_code, done.json()["error"]["code"]) == (421, "wrong_host")
    assert "token" in done.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_this_machine_is_answered(server, host):
    assert httpx.get(server.address + "/v1/tasks", headers={"Host": host}).status_code == 200


def test_a_request_without_a_host_is_answered(server):
    with connected(server) as line:
        line.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert told(received(line)) == (200, {"status": "ready"})


@pytest.mark.parametrize(
    ("token", "host", "only"),
    [(None, "127.0.0.1", True), ("s3cret", "127.0.0.1", False), (None, "0.0.0.0", False)],
)
@pytest.mark.filterwarnings("ignore:host 0.0.0.0")
def test_where_it_holds(monkeypatch, token, host, only):
    made = []

    class Kept(serving.HttpServer):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(serving, "HttpServer", Kept)
    app = create_app(FakeEngine, token=token)
    thread = threading.Thread(
        target=serving.run, args=(app, host, 0), kwargs={"say": str}, daemon=True
    )
    thread.start()
    try:
        wait_until(lambda: made and made[0].address and app.service.status == "ready")
        address = made[0].address.replace("0.0.0.0", "127.0.0.1")
        done = httpx.get(address + "/health", headers={"Host": "evil.example"})
    finally:
        made[0].handle_exit(15, None)
        thread.join(20)
    assert done.status_code == (421 if only else 200)
