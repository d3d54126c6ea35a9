"""What a server refuses, and servers that are none."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from piggyback.client import Client
from piggyback.errors import (
    ERRORS_BY_CODE,
    DeadlineError,
    OverloadError,
    PiggybackError,
    ServerError,
    TooLargeError,
    UnavailableError,
)
from support.fake_server import LIST, FakeServer, Told, answer, as_a_server, refusal, serving

BUSY = refusal(429, "overload", "1024 images are waiting", Retry_After="0")
STARTING = refusal(503, "starting", "the server is starting", Retry_After="0")


@contextmanager
def listening(handle: Callable[[socket.socket], None] | None = None) -> Iterator[str]:
    """The address of a socket; each connection is given to ``handle``, or left without a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    accepted, _ = server.accept()
                except OSError:
                    return
                with accepted:
                    accepted.recv(1000)
                    handle(accepted)

        if handle is not None:
            threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("code", [*ERRORS_BY_CODE, "a_new_one"])
def test_a_refusal_is_the_engines_error(client: Client, server: FakeServer, code: str) -> None:
    error = ERRORS_BY_CODE.get(code, ServerError)
    server.script = [refusal(418, code, "task 'sings'; did you mean 'signs'?")]
    with pytest.raises(PiggybackError, match="did you mean 'signs'") as told:
        client.predict(b"BM", "sings")
    assert type(told.value) is error
    assert len(server.asked) == 1


@pytest.mark.parametrize("told", [BUSY, STARTING])
def test_a_busy_or_starting_server_is_asked_again(
    client: Client, server: FakeServer, told: Told
) -> None:
    server.script = [told, told]
    assert client.predict(b"BM x", "signs") == answer("signs", "BM x")
    assert len(server.asked) == 3
    assert [asked.body for asked in server.asked] == [b"BM x"] * 3
    server.script = [told]
    assert len(client.predict([b"BM x", b"BM y"], "signs")) == 2  # a form, sent twice


def test_it_waits_as_long_as_the_server_wants(make: Any, server: FakeServer) -> None:
    server.script = [refusal(429, "overload", "busy", Retry_After="1")]
    began = time.monotonic()
    with make(server.url) as client:
        client.predict(b"BM x", "signs")
    assert time.monotonic() - began >= 1


def test_too_long_a_wait_is_left_to_the_caller(make: Any, server: FakeServer) -> None:
    server.script = [refusal(429, "overload", "busy", Retry_After="3600")]
    with make(server.url, timeout=5) as client, pytest.raises(OverloadError) as told:
        client.predict(b"BM x", "signs")
    assert told.value.retry_after == 3600


def test_what_may_have_changed_something_is_never_sent_twice(
    client: Client, server: FakeServer
) -> None:
    for told, error in ((BUSY, OverloadError), (Told(0, drop=True), ServerError)):
        for call in (lambda: client.put_task("signs", b"x"), lambda: client.delete_task("signs")):
            server.asked.clear()
            server.script = [told]
            with pytest.raises(error):
                call()
            assert len(server.asked) == 1


def test_an_idle_connection_that_the_server_closed_is_replaced(
    client: Client, server: FakeServer
) -> None:
    server.script = [Told(200, LIST.model_dump(mode="json"), close_after=True)]
    assert len(client.tasks()) == 1
    time.sleep(0.05)
    assert len(client.tasks()) == 1
    server.script = [Told(0, drop=True)]  # and one that breaks off while it is asked
    assert len(client.tasks()) == 1


def test_no_server_is_one_clear_line(make: Any, server: FakeServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
        for url in (nobody, server.url.replace("http:", "https:"), "http://a..b"):
            with make(url) as client:
                with pytest.raises(ServerError, match="cannot be reached") as told:
                    client.tasks()
                assert url in str(told.value)
                assert "\n" not in str(told.value)
                assert not client.ready()


def test_a_silent_server_is_a_deadline(make: Any) -> None:
    with listening() as url, make(url, timeout=0.2) as client:
        with pytest.raises(DeadlineError, match=r"no answer to GET /v1/tasks in 0\.2 seconds"):
            client.tasks()
        with pytest.raises(DeadlineError, match=r"not ready after 0\.1 seconds"):
            client.wait(0.1)


@pytest.mark.parametrize(
    "told",
    [
        Told(200, b"<html>hello</html>"),
        Told(200, [1, 2]),
        Told(200, {"answers": []}),
        Told(200, {"answers": [{"task": "signs"}]}),
        Told(502, b"<html>\n<h1>Bad\ngateway</h1>"),
        Told(500, {"error": "text"}),
        Told(301, b"", {"Location": "https://elsewhere.example/"}),
        Told(200, b"[" * 100_000),
        Told(200, b"\xff\xfe"),
    ],
)
def test_another_kind_of_server_is_one_clear_line(
    client: Client, server: FakeServer, told: Told
) -> None:
    server.script = [told]
    with pytest.raises(ServerError) as found:
        client.predict(b"BM x", "signs")
    line = str(found.value)
    assert server.url in line
    assert "\n" not in line
    assert len(line) < 500
    assert told.headers.get("Location", "") in line


def test_what_is_not_http_is_one_clear_line(make: Any) -> None:
    with (
        listening(lambda accepted: accepted.sendall(b"220 mail.example ESMTP\r\n")) as url,
        make(url) as client,
        pytest.raises(ServerError, match="broke off"),
    ):
        client.tasks()


def test_a_refusal_before_all_was_sent_is_read() -> None:
    """By ``Client``: asyncio forgets what had come in on a connection that is reset."""
    body = b'{"error": {"code": "too_large", "message": "a body of 50 MB: send less"}}'
    head = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with (
        listening(lambda accepted: accepted.sendall(head + body)) as url,
        Client(url) as client,
        pytest.raises(TooLargeError, match="send less"),
    ):
        client.predict(b"BM" + bytes(50_000_000), "signs")


def test_wait_returns_when_the_server_is_ready(client: Client, server: FakeServer) -> None:
    server.script = [Told(503, {"status": "starting"})] * 2
    assert not client.ready()
    client.wait(60)
    assert len(server.asked) == 3


def test_wait_gives_up_on_a_server_that_failed(client: Client, server: FakeServer) -> None:
    server.script = [Told(503, {"status": "failed", "reason": "no such backbone"})]
    with pytest.raises(UnavailableError, match="no such backbone"):
        client.wait(60)
    server.behave = lambda asked: Told(200, b"hello")
    with pytest.raises(DeadlineError, match="expected a Piggyback server's answer"):
        client.wait(0.1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_only_a_server_with_a_trusted_certificate_is_asked(make: Any, tmp_path: Path) -> None:
    command = [
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"),
        *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    known = ssl.create_default_context(cafile=tmp_path / "certificate.pem")
    with serving(FakeServer(as_a_server), tls) as server:
        with make(server.url, token="s3cret", timeout=60) as client:
            with pytest.raises(ServerError, match="CERTIFICATE_VERIFY_FAILED") as told:
                client.tasks()
            assert "\n" not in str(told.value)
        assert server.asked == []
        with make(server.url, token="s3cret", timeout=20, verify=known) as client:
            for _ in range(2):
                assert client.predict(b"BM x", "signs") == answer("signs", "BM x")
            assert {asked.connection for asked in server.asked} == {server.asked[0].connection}
