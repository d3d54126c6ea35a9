"""Who may ask, and by which name of the server."""

from __future__ import annotations

import httpx
import pytest

from piggyback.errors import InputError
from piggyback.serve.http.app import create_app
from piggyback.serve.http.limits import Limits
from piggyback.serve.http.middleware import names_this_machine
from support.fake_engine import FakeEngine, connected, received, served, told


@pytest.fixture(scope="module")
def server():
    with served(FakeEngine(), token="s3cret", limits=Limits(upload_bytes=100)) as running:
        yield running


GUARDED = [
    ("GET", "/v1/tasks"),
    ("GET", "/v1/tasks/colours"),
    ("POST", "/v1/predict"),
    ("POST", "/v1/tasks/colours/predict"),
    ("PUT", "/v1/tasks/new"),
    ("DELETE", "/v1/tasks/colours"),
    ("GET", "/metrics"),
    ("GET", "/metrics%0a"),  # the router takes it for /metrics
]
WRONG = [
    None,
    "",
    "s3cret",
    "Bearer",
    "Bearer s3cre",
    "Bearer s3cret2",
    "Basic s3cret",
    "Bearer \xe9",
]


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("given", [None, "Bearer wrong"])
def test_everything_that_tells_or_changes_wants_the_token(server, method, path, given):
    headers = {} if given is None else {"Authorization": given}
    done = httpx.request(method, server.address + path, headers=headers)
    assert done.status_code == 401
    assert done.json()["error"]["code"] == "unauthorized"
    assert done.headers["www-authenticate"] == "Bearer"
    assert "s3cret" not in done.text
    assert set(server.engine.files) == {"colours", "signs"}


@pytest.mark.parametrize("given", WRONG)
def test_only_the_token_itself_will_do(server, given):
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    assert httpx.get(server.address + "/v1/tasks", headers=headers).status_code == 401


@pytest.mark.parametrize("given", ["Bearer s3cret", "bearer s3cret", "Bearer  s3cret"])
def test_the_token_opens(server, given):
    done = httpx.get(server.address + "/v1/tasks", headers={"Authorization": given})
    assert done.status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/health", "/livez", "/readyz", "/docs", "/openapi.json", "/page/page.js"]
)
def test_what_is_open(server, path):
    assert httpx.get(server.address + path).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status", "name"),
    [
        (b"no task file", "application/octet-stream", 422, "new"),
        (b"task", "multipart/form-data; boundary=x", 415, "new"),
        (b"task" * 100, "application/octet-stream", 413, "new"),
        (b"task", "application/octet-stream", 422, "..%5cnew"),
        (b"task", "application/octet-stream", 404, "..%2fnew"),
    ],
)
def test_uploads_that_change_nothing(server, content, kind, status, name):
    headers = {"Authorization": "Bearer s3cret", "Content-Type": kind}
    done = httpx.put(f"{server.address}/v1/tasks/{name}", content=content, headers=headers)
    assert done.status_code == status
    headers = {**headers, "Content-Encoding": "gzip"}
    done = httpx.put(f"{server.address}/v1/tasks/new", content=b"task", headers=headers)
    assert done.status_code == 415  # what is wrong is not the file
    assert set(server.engine.files) == {"colours", "signs"}


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é"])
def test_tokens_that_no_header_can_carry(token):
    with pytest.raises(InputError, match="token"):
        create_app(FakeEngine, token=token)


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:80", "10.0.0.7:8000", "[::1]",
     "[::1]:8000"],
)  # fmt: skip
def test_names_that_cannot_be_made_to_lead_here(host):
    assert names_this_machine(host)


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[::1].evil.example",
     "[localhost]", "localhost:80@evil.example", "127.0.0.1 ,evil.example", ":8000", "localhost."],
)  # fmt: skip
def test_names_that_can(host):
    assert not names_this_machine(host)


@pytest.fixture(scope="module")
def local():
    with served(FakeEngine(), local_only=True) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/health", "/v1/tasks", "/metrics", "/nothing"])
def test_a_strangers_name_is_told_nothing(local, path):
    done = httpx.get(local.address + path, headers={"Host": "evil.example:8000"})
    assert (done.status_code, done.json()["error"]["code"]) == (421, "wrong_host")
    assert "token" in done.json()["error"]["message"]


def test_this_machine_is_answered(local):
    assert httpx.get(local.address + "/v1/tasks", headers={"Host": "[::1]:80"}).status_code == 200
    with connected(local) as line:
        line.sendall(b"GET /health HTTP/1.0\r\n\r\n")  # names no host
        assert told(received(line)) == (200, {"status": "ready"})
