"""What no client library sends: bodies that lie about their length, senders that stop, crowds."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from piggyback.serve.http.limits import Limits
from support.fake_engine import FakeEngine, connected, head, received, served, told, wait_until

PREDICT = "/v1/tasks/colours/predict"
SLOW = Limits(body_bytes=1000, body_s=0.4, connections=8, timeout_s=0.8)


@pytest.fixture
def server():
    with served(FakeEngine(), limits=SLOW) as running:
        yield running


def answers_still(server):
    done = httpx.post(server.address + PREDICT, files={"image": b"red"})
    return done.status_code == 200


def test_a_body_that_says_it_is_too_long_is_refused_unread(server):
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 99999999999"))
        status, body = told(line.recv(65536))
    assert (status, body["error"]["code"]) == (413, "too_large")
    assert "1000" in body["error"]["message"]
    assert not server.engine.asked


def test_a_body_in_pieces_is_counted_as_it_comes(server):
    piece = b"64\r\n" + b"r" * 100 + b"\r\n"
    with connected(server) as line:
        line.sendall(head(PREDICT, "Transfer-Encoding: chunked"))
        line.sendall(piece * 11)  # and no end
        status, body = told(line.recv(65536))
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
    assert (done.status_code, done.json()["error"]["code"]) == (413, "too_large")


def test_a_body_that_stops_half_way(server):
    with connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 100") + b"red")
        status, body = told(received(line))
    assert (status, body["error"]["code"]) == (408, "slow")
    assert not server.engine.asked
    assert answers_still(server)


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


def test_what_stops_one_image_of_several_stops_the_others(server):
    server.engine.slow = 0.2
    server.engine.overloaded = b"green"
    files = [("image", b"red"), ("image", b"green"), ("image", b"blue")]
    done = httpx.post(server.address + "/v1/predict?task=signs", files=files)
    assert done.status_code == 429
    wait_until(lambda: server.engine.cancelled == 2)


def test_a_crowd_is_sent_away_and_those_inside_are_answered(server):
    with contextlib.ExitStack() as stack:
        inside = [stack.enter_context(connected(server)) for _ in range(SLOW.connections)]
        outside = stack.enter_context(connected(server))
        outside.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert outside.recv(65536).startswith(b"HTTP/1.1 503")
        assert inside
    wait_until(lambda: not server.server_state.connections)
    assert answers_still(server)


def test_many_large_bodies_at_once_are_more_than_is_held():
    limits = Limits(body_bytes=1000, held_bytes=1500, body_s=20.0)
    with served(FakeEngine(), limits=limits) as server:
        with connected(server) as first, connected(server) as second:
            first.sendall(head(PREDICT, "Content-Length: 1000") + b"r" * 999)
            wait_until(lambda: server.service.held == 999)
            second.sendall(head(PREDICT, "Content-Length: 1000") + b"r" * 999)
            response = second.recv(65536)
            assert told(response)[0] == 429
            assert b"retry-after: 1\r\n" in response
            first.sendall(b"r")
            assert first.recv(65536).startswith(b"HTTP/1.1 200")
        wait_until(lambda: server.service.held == 0)
    assert server.engine.asked == [("colours", b"r" * 1000, 5)]
