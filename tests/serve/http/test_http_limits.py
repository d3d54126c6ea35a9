"""What no client library sends: bodies that lie about their length, senders that stop, crowds."""

from __future__ import annotations

import contextlib
import importlib
import socket
import time

import httpx
import pytest

from piggyback.errors import InputError
from piggyback.serve.http import calls, connections
from piggyback.serve.http.limits import Limits
from support.fake_engine import FakeEngine, connected, head, received, served, told, wait_until

PREDICT = "/v1/tasks/colours/predict"
SLOW = Limits(body_bytes=1000, header_s=0.4, body_s=0.4, connections=8, timeout_s=0.8)


@pytest.fixture(params=["httptools", "h11"])
def server(request, monkeypatch):
    """With the quick parser, and with the one that is there without it."""
    pytest.importorskip(request.param)
    protocols = importlib.import_module(f"uvicorn.protocols.http.{request.param}_impl")
    kind = "HttpToolsProtocol" if request.param == "httptools" else "H11Protocol"
    monkeypatch.setattr(connections, "AutoHTTPProtocol", getattr(protocols, kind))
    monkeypatch.setattr(calls, "LINGER_S", 0.2)
    engine = FakeEngine()
    with served(engine, limits=SLOW) as running:
        running.engine = engine
        yield running


def received_until_json_ends(line):
    """One whole response, on a connection that stays open."""
    found = b""
    while True:
        found += line.recv(4096)
        with contextlib.suppress(ValueError):
            told(found)
            return found


def answers_still(server):
    done = httpx.post(server.address + PREDICT, files={"image": b"red"})
    return done.status_code == 200


def test_a_body_that_says_it_is_too_long_is_refused_unread(server):
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 99999999999"))
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert "1000" in body["error"]["message"]
    assert not server.engine.asked


def test_a_body_in_pieces_is_counted_as_it_comes(server):
    piece = b"64\r\n" + b"r" * 100 + b"\r\n"
    with connected(server) as line:
        line.sendall(head(PREDICT, "Transfer-Encoding: chunked"))
        line.sendall(piece * 11)  # and no end
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (413, "too_large")
    with connected(server) as line:
        lines = ("Transfer-Encoding: chunked", "Connection: close")
        line.sendall(head(PREDICT, *lines))
        line.sendall(piece * 10 + b"0\r\n\r\n")
        status, body = told(received(line))
    assert status == 200
    assert server.engine.asked == [("colours", b"r" * 1000, 5)]


def test_a_client_that_sends_on_still_reads_why_it_was_refused(server):
    done = httpx.post(
        server.address + PREDICT,
        content=b"r" * 3_000_000,
        headers={"Content-Type": "image/png"},
    )
    assert done.status_code == 413
    assert done.headers["connection"] == "close"


def test_a_body_that_stops_half_way(server):
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 100") + b"red")
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (408, "slow")
    assert not server.engine.asked
    assert answers_still(server)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/pre", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_never_end(server, sent):
    with connected(server) as line:
        line.sendall(sent)
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (408, "slow")


def test_headers_that_come_drop_by_drop(server):
    with connected(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\n")
        line.settimeout(0.05)
        found = b""
        for _ in range(100):
            try:
                line.sendall(b"X-A: 1\r\n")
                found += line.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            break
    assert found.startswith(b"HTTP/1.1 408")


def test_a_connection_may_rest_between_requests(server):
    with connected(server) as line:
        for _ in range(2):
            line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert line.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(1.6 * SLOW.header_s)


def test_headers_without_end(server):
    with connected(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\n")
        found = b""
        try:
            for _ in range(100):
                line.sendall(b"X-A: " + b"a" * 2000 + b"\r\n")
            found = received(line)
        except ConnectionError:
            found = found or b"closed"
    assert found == b"closed" or found.startswith(b"HTTP/1.1 431")
    assert answers_still(server)


def test_what_is_not_http(server):
    with connected(server) as line:
        line.sendall(b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n")
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (400, "bad_request")


def test_what_cannot_be_read_says_what_was_expected(server):
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 3", "Content-Length: 4") + b"red")
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert "each length once" in body["error"]["message"]


def test_a_client_that_never_reads_is_let_go(server):
    bound = server.servers[0].sockets[0]
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # as of those that it accepts
    address = server.address.removeprefix("http://").split(":")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((address[0], int(address[1])))
        line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        wait_until(lambda: server.server_state.connections)
        wait_until(lambda: not server.server_state.connections)
        wait_until(lambda: not server.service.in_flight)
    assert answers_still(server)


def test_a_client_that_has_read_its_answer_is_kept(server):
    bound = server.servers[0].sockets[0]
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with connected(server) as line:
        line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: server.server_state.connections)
        found = received_until_json_ends(line)
        time.sleep(1.5 * SLOW.body_s)
        line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert received(line).startswith(b"HTTP/1.1 200")
    assert told(found)[0] == 200


def test_a_body_behind_an_upgrade_is_refused_not_lost(server):
    with connected(server) as line:
        lines = ("Upgrade: h2c", "Connection: Upgrade", "Content-Length: 3")
        line.sendall(head(PREDICT, *lines) + b"red")
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (400, "bad_request")
    assert "Upgrade" in body["error"]["message"]
    assert not server.engine.asked


def test_what_follows_a_body_does_not_change_its_headers(server):
    with connected(server) as line:
        lines = ("Transfer-Encoding: chunked", "X-Request-ID: first", "Connection: close")
        line.sendall(head(PREDICT, *lines) + b"3\r\nred\r\n0\r\n")
        line.sendall(b"Content-Type: application/json\r\nX-Request-ID: last\r\n\r\n")
        response = received(line)
    assert told(response)[0] == 200
    assert b"x-request-id: first\r\n" in response


def test_of_two_headers_of_a_name_the_first_counts(server):
    with connected(server) as line:
        lines = ("X-Request-ID: first", "X-Request-ID: last", "Connection: close")
        line.sendall(head(PREDICT, *lines, "Content-Length: 3") + b"red")
        assert b"x-request-id: first\r\n" in received(line)


def test_a_crowd_is_sent_away_and_those_inside_are_answered(server):
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(connected(server)) for _ in range(SLOW.connections)]
        for line in inside:
            line.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert line.recv(65536).startswith(b"HTTP/1.1 200")
        outside = stack.enter_context(connected(server))
        response = received(outside)
        assert told(response)[0] == 429
        assert b"retry-after: 1\r\n" in response
        inside[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert inside[0].recv(65536).startswith(b"HTTP/1.1 200")
    wait_until(lambda: not server.server_state.connections)
    assert answers_still(server)
    text = httpx.get(server.address + "/metrics").text
    assert 'piggyback_http_requests_total{method="none",route="none",status="429"} 1.0' in text


def test_a_client_that_goes_away_is_not_worked_for(server):
    server.engine.slow = 20.0
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 3") + b"red")
        wait_until(lambda: server.engine.asked)
    wait_until(lambda: server.engine.cancelled == 1)
    wait_until(lambda: server.service.in_flight == 0)


def test_a_client_that_goes_away_while_it_sends(server):
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 100") + b"red")
        wait_until(lambda: server.service.in_flight)
    wait_until(lambda: server.service.in_flight == 0)
    assert not server.engine.asked


def test_an_answer_that_takes_too_long(server):
    server.engine.slow = 5.0
    done = httpx.post(server.address + PREDICT, files={"image": b"red"})
    assert (done.status_code, done.json()["error"]["code"]) == (504, "timeout")


def test_one_bad_image_of_several_stops_the_others(server):
    server.engine.slow = 0.2
    files = [("image", b"red"), ("image", b"not one"), ("image", b"blue")]
    done = httpx.post(server.address + "/v1/predict?task=signs", files=files)
    assert done.status_code == 400
    wait_until(lambda: server.engine.cancelled == 2)


def test_two_requests_sent_at_once_are_answered_in_turn(server):
    with connected(server) as line:
        one = head(PREDICT, "Content-Length: 3") + b"red"
        two = head("/v1/tasks/signs/predict", "Content-Length: 4", "Connection: close") + b"blue"
        line.sendall(one + two)
        found = received(line)
    assert found.count(b"HTTP/1.1 200") == 2
    assert found.index(b'"red"') < found.index(b'"task":"signs"')


def test_many_large_bodies_at_once_are_more_than_is_held():
    engine = FakeEngine()
    limits = Limits(body_bytes=1000, held_bytes=1500, body_s=20.0)
    with served(engine, limits=limits) as server:
        with connected(server) as first, connected(server) as second:
            first.sendall(head(PREDICT, "Content-Length: 1000") + b"r" * 999)
            wait_until(lambda: server.service.held == 999)
            second.sendall(head(PREDICT, "Content-Length: 1000") + b"r" * 999)
            response = received(second)
            assert told(response)[0] == 429
            assert b"retry-after: 1\r\n" in response
            first.sendall(b"r")
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
        wait_until(lambda: server.service.held == 0)
    assert engine.asked == [("colours", b"r" * 1000, 5)]


@pytest.mark.parametrize("name", ["body_bytes", "timeout_s", "connections"])
def test_limits_are_more_than_nothing(name):
    with pytest.raises(InputError, match=name):
        Limits(**{name: 0})
