"""Who may ask."""

from __future__ import annotations

import httpx
import pytest

from piggyback.errors import InputError
from piggyback.serve.http.app import create_app
from piggyback.serve.http.limits import Limits
from support.fake_engine import FakeEngine, served


@pytest.fixture(scope="module")
def server():
    engine = FakeEngine()
    with served(engine, token="s3cret", limits=Limits(upload_bytes=100)) as running:
        running.engine = engine
        yield running


GUARDED = [
    ("GET", "/v1/tasks"),
    ("GET", "/v1/tasks/colours"),
    ("POST", "/v1/predict"),
    ("POST", "/v1/tasks/colours/predict"),
    ("PUT", "/v1/tasks/new"),
    ("DELETE", "/v1/tasks/colours"),
    ("GET", "/v1/nothing"),
    ("GET", "/metrics"),
    ("GET", "/metrics%0a"),  # the router takes it for /metrics
    ("GET", "/nothing"),
]
WRONG = [
    None,
    "",
    "s3cret",
    "Bearer",
    "Bearer wrong",
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


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json", "/page/page.js"])
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
    assert set(server.engine.files) == {"colours", "signs"}


@pytest.mark.parametrize("token", ["", "two words", "line\n", "é"])
def test_tokens_that_no_header_can_carry(token):
    with pytest.raises(InputError, match="token"):
        create_app(FakeEngine, token=token)
