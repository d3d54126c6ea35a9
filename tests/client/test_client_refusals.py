"""What a server refuses, and servers that are no servers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from piggyback.client import Client
from piggyback.client.address import parse_url
from piggyback.errors import (
    AccessError,
    BackboneMismatchError,
    ClosedError,
    DataError,
    DeadlineError,
    InputError,
    OverloadError,
    PiggybackError,
    ServerError,
    TaskFileError,
    TaskNameError,
    TooLargeError,
    UnavailableError,
    UnknownTaskError,
)
from support.fake_server import FakeServer, Told, answer, refusal

BUSY = refusal(429, "overload", "1024 images are waiting", Retry_After="0")
STARTING = refusal(503, "starting", "the server is starting", Retry_After="0")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (404, "unknown_task", UnknownTaskError),
        (400, "bad_image", DataError),
        (413, "too_large", TooLargeError),
        (400, "malformed_json", InputError),
        (504, "timeout", DeadlineError),
        (503, "unavailable", UnavailableError),
        (503, "stopping", ClosedError),
        (503, "failed", UnavailableError),
        (401, "unauthorized", AccessError),
        (403, "forbidden", AccessError),
        (422, "bad_task_name", TaskNameError),
        (422, "bad_task_file", TaskFileError),
        (422, "wrong_backbone", BackboneMismatchError),
        (418, "a_new_one", ServerError),
    ],
)
def test_a_refusal_is_the_engines_error(
    client: Client, server: FakeServer, status: int, code: str, error: type[Exception]
) -> None:
    server.script = [refusal(status, code, "task 'sings'; did you mean 'signs'?", Retry_After="0")]
    with pytest.raises(PiggybackError, match="did you mean 'signs'") as told:
        client.predict(b"BM", "sings")
    assert isinstance(told.value, error)
    assert len(server.asked) == 1


@pytest.mark.parametrize("told", [BUSY, STARTING])
def test_a_busy_or_starting_server_is_asked_again(
    client: Client, server: FakeServer, told: Told
) -> None:
    server.script = [told, told]
    assert client.predict(b"BM x", "signs") == answer("signs", "BM x")
    assert len(server.asked) == 3


def test_it_waits_as_long_as_the_server_wants(server: FakeServer) -> None:
    server.script = [refusal(429, "overload", "busy", Retry_After="1")]
    began = time.monotonic()
    with Client(server.url) as client:
        client.predict(b"BM x", "signs")
    assert time.monotonic() - began >= 1


def test_retries_end(server: FakeServer) -> None:
    server.script = [BUSY] * 9
    with (
        Client(server.url, retries=3) as client,
        pytest.raises(OverloadError, match="are waiting"),
    ):
        client.predict(b"BM x", "signs")
    assert len(server.asked) == 4


def test_too_long_a_wait_is_left_to_the_caller(server: FakeServer) -> None:
    server.script = [refusal(429, "overload", "busy", Retry_After="3600")]
    with Client(server.url, timeout=5) as client, pytest.raises(OverloadError) as told:
        client.predict(b"BM x", "signs")
    assert told.value.retry_after == 3600


def test_what_may_have_changed_something_is_never_sent_twice(
    client: Client, server: FakeServer
) -> None:
    client.tasks()  # leaves a connection to use again
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
    server.script = [Told(200, {"tasks": []}, close_after=True)]
    assert client.tasks() == []
    time.sleep(0.05)
    assert len(client.tasks()) == 1
    server.script = [Told(0, drop=True)]  # and one that breaks off while it is asked
    assert len(client.tasks()) == 1


def test_no_server_is_one_clear_line(server: FakeServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServerError, match="is it running") as told:
            client.tasks()
        assert url in str(told.value)
        assert "\n" not in str(told.value)
        with Client(url) as client:
            assert not client.ready()
    for url, words in (
        (server.url.replace("http:", "https:"), "cannot be reached"),
        ("http://a..b", "cannot be reached"),
    ):
        with Client(url) as client, pytest.raises(ServerError, match=words):
            client.tasks()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_silent_server_is_a_deadline(silent: str) -> None:
    with Client(silent, timeout=0.2) as client:
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
    if "Location" in told.headers:
        assert "https://elsewhere.example/" in line


def test_what_is_no_http_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(1000)
                accepted.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServerError, match="broke off"):
            client.tasks()
        thread.join()


def test_a_refusal_before_all_was_sent_is_read() -> None:
    body = b'{"error": {"code": "too_large", "message": "a body of 50 MB: send less"}}'
    head = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def refuse() -> None:
            accepted, _ = listening.accept()
            with accepted:
                accepted.recv(1000)
                accepted.sendall(head + body)

        thread = threading.Thread(target=refuse)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with Client(url) as client, pytest.raises(TooLargeError, match="send less"):
            client.predict(b"BM" + bytes(50_000_000), "signs")
        thread.join()


def test_names_that_could_be_paths_are_not_sent(client: Client, server: FakeServer) -> None:
    for name in ("../signs", "..", "a/b", "", "a?b", "a%2Fb", "näme", "x" * 101):
        for call in (
            lambda name=name: client.predict(b"BM x", name),
            lambda name=name: client.infer(b"BM x", [name]),
            lambda name=name: client.task(name),
            lambda name=name: client.delete_task(name),
        ):
            with pytest.raises(UnknownTaskError, match="expected letters"):
                call()
        with pytest.raises(TaskNameError):
            client.put_task(name, b"x")
    assert server.asked == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000", "http:// or https:// in front"),
        ("ftp://host", "found 'ftp'"),
        ("http://", "a host and a port"),
        ("http://:80", "a host and a port"),
        ("http://host:0", "a host and a port"),
        ("http://host:99999", "a host and a port"),
        ("http://host:port", "a host and a port"),
        ("http://[::1", "a host and a port"),
        ("http://host/?x=1", "nothing after the path"),
        ("http://host/#x", "nothing after the path"),
        ("http://ho st", "without spaces"),
        ("http://host\r\nX: 1", "without spaces"),
        ("http://höst", "printable ASCII"),
        (None, "printable ASCII"),
    ],
)
def test_odd_urls_are_refused(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Client(url)


def test_a_password_in_a_url_is_refused_and_not_shown() -> None:
    with pytest.raises(InputError, match="no user name or password") as told:
        Client("http://me:hunter2@host")
    assert "hunter2" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("http://host", "http://host:80"),
        ("HTTPS://Host/a/", "https://host:443/a"),
        ("http://[::1]:8000/", "http://[::1]:8000"),
    ],
)
def test_urls_that_are_taken(url: str, whole: str) -> None:
    assert str(parse_url(url)) == whole


def test_wait_returns_when_the_server_is_ready(client: Client, server: FakeServer) -> None:
    server.script = [Told(503, {"status": "starting"})] * 2
    assert not client.ready()
    client.wait(10)
    assert len(server.asked) == 3


def test_wait_gives_up_on_a_server_that_failed(client: Client, server: FakeServer) -> None:
    server.script = [Told(503, {"status": "failed", "reason": "no such backbone"})]
    with pytest.raises(UnavailableError, match="no such backbone"):
        client.wait(10)
    server.behave = lambda asked: Told(200, b"hello")
    with pytest.raises(DeadlineError, match="expected a Piggyback server's answer"):
        client.wait(0.1)
