"""From the start to the end of a server."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import warnings

import httpx
import pytest
from starlette.testclient import TestClient

from piggyback.errors import BackboneError, InputError, PiggybackWarning
from piggyback.serve.http import server as serving
from piggyback.serve.http.app import create_app
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.server import run
from support.fake_engine import FakeEngine, connected, head, received, served, told, wait_until

PREDICT = "/v1/tasks/colours/predict"


def test_no_answers_until_the_engine_is_there():
    go, said = threading.Event(), []

    def start():
        go.wait(60)
        return FakeEngine()

    with served(start, said=said, ready=False) as server:
        health = httpx.get(server.address + "/health")
        assert (health.status_code, health.json()["status"]) == (503, "starting")
        done = httpx.post(server.address + PREDICT, files={"image": b"red"})
        assert (done.status_code, done.json()["error"]["code"]) == (503, "starting")
        assert done.headers["retry-after"] == "1"
        assert httpx.get(server.address + "/").status_code == 200
        assert httpx.get(server.address + "/livez").status_code == 200
        assert "piggyback_ready 0.0" in httpx.get(server.address + "/metrics").text
        assert said == []
        go.set()
        wait_until(lambda: said)
        assert said == [f"ready at {server.address}"]
        assert httpx.get(server.address + "/health").status_code == 200


def refuse():
    raise BackboneError("backbone 'resnt50': no such network; did you mean 'resnet50'?")


def test_run_raises_what_the_start_raised():
    said = []
    with pytest.raises(BackboneError, match="resnt50"):
        run(create_app(refuse), port=0, say=said.append)
    assert said == []


@pytest.mark.parametrize("error", [BackboneError("no 'resnt50'"), ZeroDivisionError("inside")])
def test_a_start_that_failed_can_be_asked_about(error, caplog):
    # as under another server than ours, which does not end for it
    def start():
        raise error

    app = create_app(start)
    with TestClient(app) as client:
        wait_until(lambda: app.state.service.status == "failed")
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert (client.get("/livez").status_code, client.get("/readyz").status_code) == (503, 503)
        done = client.post(PREDICT, files={"image": b"red"})
    assert (done.status_code, done.json()["error"]["code"]) == (503, "failed")
    ours = isinstance(error, BackboneError)
    assert ("resnt50" in health.json()["reason"]) == ours
    assert "inside" not in health.text
    assert ("ZeroDivisionError: inside" in caplog.text) == (not ours)


def test_requests_that_run_are_answered_and_new_ones_are_not():
    engine = FakeEngine(slow=0.6)
    with served(engine) as server:
        with connected(server) as early, connected(server) as late:
            early.sendall(head(PREDICT, "Content-Length: 3") + b"red")
            wait_until(lambda: engine.asked)
            server.handle_exit(signal.SIGTERM, None)
            late.sendall(head(PREDICT, "Content-Length: 4") + b"blue")
            status, body = told(received(late))
            assert (status, body["error"]["code"]) == (503, "stopping")
            health = httpx.get(server.address + "/health")
            assert (health.status_code, health.json()["status"]) == (503, "stopping")
            status, body = told(received(early))
            assert (status, body["answers"][0]["classes"][0]["class"]) == (200, "red")
        wait_until(lambda: engine.closed)
    assert engine.closed == [True]
    assert [image for _, image, _ in engine.asked] == [b"red"]


@pytest.mark.parametrize("twice", [False, True])
def test_stopping_takes_a_bounded_time(twice, monkeypatch):
    monkeypatch.setattr(serving, "LAST_S", 1)
    engine = FakeEngine(slow=60.0)
    limits = Limits(stop_s=60.0 if twice else 0.3)
    with served(engine, limits=limits) as server, connected(server) as line:
        line.sendall(head(PREDICT, "Content-Length: 3") + b"red")
        wait_until(lambda: engine.asked)
        server.handle_exit(signal.SIGTERM, None)
        if twice:
            server.handle_exit(signal.SIGTERM, None)
        status, body = told(received(line))
        assert (status, body["error"]["code"]) == (503, "stopping")
        wait_until(lambda: engine.closed)
    assert engine.cancelled == 1
    assert engine.closed == [False]  # what is queued is given up


def test_stopping_does_not_wait_for_the_network_which_is_closed_once_it_is_there():
    begun, go, engine = threading.Event(), threading.Event(), FakeEngine()

    def start():
        begun.set()
        go.wait(60)
        return engine

    try:
        with served(start, limits=Limits(stop_s=60.0), ready=False) as server:
            assert begun.wait(60)
            server.handle_exit(signal.SIGTERM, None)
        # served() has seen the server's thread end
        assert server.service.status == "stopping"
        assert not engine.closed
    finally:
        go.set()
    wait_until(lambda: engine.closed)
    assert server.service.status == "stopping"


def test_an_engine_that_answers_no_more_is_not_ready():
    engine = FakeEngine()
    client = TestClient(create_app(engine))
    assert client.get("/readyz").status_code == 200
    engine.close()  # by whoever made it; one that was made before a fork says the same of itself
    health = client.get("/readyz")
    assert (health.status_code, health.json()["status"]) == (503, "stopping")
    assert client.post(PREDICT, files={"image": b"red"}).json()["error"]["code"] == "stopping"


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} on 127.0.0.1 .* choose another"):
            run(create_app(FakeEngine), port=port)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("127.0.0.1", 99999)])
def test_an_address_that_cannot_be_had(host, port):
    with pytest.raises(InputError, match="cannot be had"):
        run(create_app(FakeEngine), host, port)


@pytest.mark.parametrize(
    ("token", "host", "only"),
    [(None, "127.0.0.1", True), ("s3cret", "127.0.0.1", False), (None, "0.0.0.0", False)],
)
def test_a_host_that_others_reach_wants_a_token_and_others_are_local(token, host, only):
    app = create_app(refuse, token=token)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(BackboneError):
            run(app, host, 0)
    told = [str(one.message) for one in warned if one.category is PiggybackWarning]
    assert ["token=" in one for one in told] == [True] * (host == "0.0.0.0" and not token)
    assert app.state.service.local_only is only


def test_loggers_are_left_as_they_were():
    def state():
        names = ("piggyback", "uvicorn", "python_multipart")
        loggers = [logging.getLogger(name) for name in names]
        return [(one.handlers[:], one.level, one.propagate) for one in loggers]

    before = state()
    with pytest.raises(BackboneError):
        run(create_app(refuse), port=0)
    assert state() == before
