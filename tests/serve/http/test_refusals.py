"""Whatever is wrong with a request: a clear status, one line, and nothing changed."""

from __future__ import annotations

import base64
import json

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piggyback.errors import (
    BackboneMismatchError,
    ClosedError,
    DataError,
    DeadlineError,
    InputError,
    OverloadError,
    TaskFileError,
    TooLargeError,
    UnavailableError,
)
from piggyback.serve.http.limits import Limits
from support.fake_engine import FakeEngine, connected, head, received, served, told

PREDICT = "/v1/tasks/colours/predict"
PIECES = [
    b"--XX", b"\r\n", b"--", b"\r", b"\n", b"Content-Disposition: form-data", b'; name="image"',
    b"; name=", b":", b"\r\n\r\n", b"--XX--", b"red", b"\x00\xff", b" ",
]  # fmt: skip
RED = base64.b64encode(b"red").decode()
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server():
    limits = Limits(body_bytes=20_000, upload_bytes=30_000, images=3, tasks=2)
    with served(FakeEngine(), limits=limits) as running:
        yield running


@pytest.fixture
def client(server):
    server.engine.asked.clear()
    with httpx.Client(base_url=server.address) as made:
        yield made
    assert not server.engine.asked, "the engine was asked all the same"


def refused(done, status, code, *words):
    assert done.status_code == status, done.text
    error = done.json()["error"]
    assert error["code"] == code
    assert "\n" not in error["message"]
    assert "Traceback" not in done.text
    for word in words:
        assert word in error["message"]
    assert done.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b'{"top_k": ' + b"9" * 5000 + b"}",
        b'{"image": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"images": [' + b'"",' * 3000 + b'""]}',
        b'{"image": "x"} {}',
    ],
)
def test_malformed_json(client, body):
    refused(client.post(PREDICT, content=body, headers=JSON), 400, "malformed_json")


@pytest.mark.parametrize(
    ("values", "status", "code", "word"),
    [
        ({}, 422, "invalid", "'image'"),
        ({"image": RED, "images": [RED]}, 422, "invalid", "one of"),
        ({"image": RED, "text": "red"}, 422, "invalid", "one of"),
        ({"texts": ["red", 5]}, 422, "invalid", "texts"),
        ({"image": 5}, 422, "invalid", "found 5"),
        ({"image": None}, 422, "invalid", "no image"),
        ({"images": RED}, 422, "invalid", "images"),
        ({"images": []}, 422, "invalid", "no image"),
        ({"images": [RED, "not base64!"]}, 400, "bad_request", "images.1"),
        ({"image": "éé"}, 400, "bad_request", "image"),
        ({"image": "abcde"}, 400, "bad_request", "image"),
        ({"image": ""}, 400, "bad_image", "empty"),
        ({"images": [RED] * 4}, 413, "too_large", "at most 3"),
        ({"image": RED, "top_k": 0}, 422, "invalid", "top_k"),
        ({"image": RED, "top_k": True}, 422, "invalid", "top_k"),
        ({"image": RED, "top_k": 1.5}, 422, "invalid", "top_k"),
        ({"image": RED, "top_k": "5"}, 422, "invalid", "'5'"),
        ({"image": RED, "top_k": 10**9}, 422, "invalid", "top_k"),
        ({"image": RED, "tasks": ["signs"]}, 422, "invalid", "'tasks'"),
        ({"image": RED, "topk": 3}, 422, "invalid", "'topk'"),
    ],
)
def test_json_that_asks_for_something_impossible(client, values, status, code, word):
    refused(client.post(PREDICT, json=values), status, code, word)


@pytest.mark.parametrize("query", ["top_k=0", "top_k=-1", "top_k=x", "top_k=", "top_k=99999999999",
                                   "task=signs", "verbose=1", "?&&=;"])  # fmt: skip
def test_a_query_that_is_not_understood(client, query):
    refused(client.post(f"{PREDICT}?{query}", files={"image": b"red"}), 422, "invalid")


@pytest.mark.parametrize(
    "body",
    [
        {"json": {"image": RED, "top_k": 1}, "params": {"top_k": 1}},
        {"files": {"image": b"red"}, "data": {"top_k": 1}, "params": {"top_k": 1}},
        {"files": {"image": b"red"}, "data": {"top_k": [1, 2]}},
        {"files": {"image": b"red"}, "params": {"top_k": [1, 2]}},
        {"content": f'{{"image": "{RED}", "top_k": 1, "top_k": 2}}', "headers": JSON},
    ],
)
def test_top_k_in_two_places(client, body):
    refused(client.post(PREDICT, **body), 422, "invalid", "top_k")


def test_of_two_images_of_one_name_in_json_none_is_passed_over(client):
    for body in (f'{{"image": "{RED}", "image": "{RED}"}}', '{"text": "a", "text": "b"}'):
        refused(client.post(PREDICT, content=body, headers=JSON), 422, "invalid", "twice")


@pytest.mark.parametrize("charset", ["utf-16", "'latin-1'"])
def test_a_text_of_another_charset_is_not_read_as_utf_8(client, charset):
    headers = {"Content-Type": f"text/plain; charset={charset}"}
    done = client.post(PREDICT, content="red".encode("utf-16-le"), headers=headers)
    refused(done, 415, "unsupported", charset.strip("'"))


@pytest.mark.parametrize(
    ("body", "status", "code", "word"),
    [
        ({"files": {"image": b"red"}, "params": {"task": "sings"}}, 404, "unknown_task", "'signs'"),
        ({"files": {"image": b"red"}, "params": {"task": "../x"}}, 422, "bad_task_name", "'../x'"),
        ({"json": {"image": RED, "tasks": ["../x"]}}, 422, "bad_task_name", "'../x'"),
        ({"json": {"image": RED, "tasks": [1]}}, 422, "invalid", "tasks.0"),
        ({"json": {"image": RED, "tasks": []}}, 422, "invalid", "tasks"),
        ({"json": {"image": RED, "tasks": ["signs"] * 3}}, 422, "invalid", "3 tasks"),
    ],
)
def test_tasks_that_cannot_be_asked(client, body, status, code, word):
    refused(client.post("/v1/predict", **body), status, code, word)


@pytest.mark.parametrize(
    "kind",
    [
        "text/html",
        "application/x-www-form-urlencoded",
        "image/tiff",
        "image/svg+xml",
        "a" * 500,
    ],
)
def test_content_types_that_are_not_taken(client, kind):
    done = client.post(PREDICT, content=b"red", headers={"Content-Type": kind})
    refused(done, 415, "unsupported", "multipart/form-data")


def test_compressed_bodies_are_not_taken(client):
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    refused(client.post(PREDICT, content=b"red", headers=headers), 415, "unsupported")


def part(name="image", data=b"red", *lines, file='; filename="a"'):
    top = (f'Content-Disposition: form-data; name="{name}"{file}', *lines, "", "")
    return b"--XX\r\n" + "\r\n".join(top).encode() + data + b"\r\n"


END = b"--XX--\r\n"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_request"),
        (b"no form at all", "bad_request"),
        (part() + part()[:-8], "bad_request"),
        (b"--XX\r\n\r\nred\r\n--XX--\r\n", "bad_request"),  # no name
        (part("image", b"red", "X-A: " + "a" * 50_000) + END, "too_large"),  # of all of it
        (part("image", b"") + END, "bad_image"),
        (part("file") + END, "invalid"),
        (part("image", file="") + END, "invalid"),  # not a file
        (part("images", file="") + part() + END, "invalid"),
        (part("texts", file="") + END, "invalid"),
        (part() + part("tasks", file="") + part("task", file="") + END, "invalid"),
        (part("top_k", b"1", file="") + END, "invalid"),
        (part() + part("top_k", b"1" * 500, file="") + END, "invalid"),
        (part() + part("top_k", b"1", file="") * 2 + END, "invalid"),
        (part() + part("top_k", b"1" * 5000, file="") + END, "invalid"),
        (part() + part("text", b"red", file="") + END, "invalid"),
        (part() * 4 + END, "too_large"),
        (part() * 200 + END, "too_large"),
        (part() + part("task", b"a", file="") * 200 + END, "too_large"),
    ],
)
def test_forms_that_cannot_be_taken(client, body, code):
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    done = client.post(PREDICT, content=body, headers=headers)
    status = {"bad_request": 400, "bad_image": 400, "too_large": 413, "invalid": 422}[code]
    refused(done, status, code)


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_form_without_a_boundary(client, kind):
    done = client.post(PREDICT, content=b"--XX", headers={"Content-Type": kind})
    refused(done, 400, "bad_request", "form")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join) | st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(server, body):
    for kind in ("multipart/form-data; boundary=XX", "application/json"):
        done = httpx.post(server.address + PREDICT, content=body, headers={"Content-Type": kind})
        assert done.status_code in (200, 400, 413, 422), done.text
        if done.status_code != 200:
            refused(done, done.status_code, done.json()["error"]["code"])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/tasks/..%2f..%2fetc%2fpasswd/predict", 404, "not_found"),
        ("/v1/tasks/%2e%2e/predict", 422, "bad_task_name"),
        ("/v1/tasks/..%5c..%5cx/predict", 422, "bad_task_name"),
        ("/v1/tasks/a%00b/predict", 422, "bad_task_name"),
        ("/v1/tasks/a%0ab/predict", 422, "bad_task_name"),
        ("/v1/tasks/%ff/predict", 422, "bad_task_name"),
        ("/v1/tasks/" + "a" * 101 + "/predict", 422, "bad_task_name"),
        ("/v1/tasks/" + "a" * 20000 + "/predict", 422, "bad_task_name"),
        ("/v1/tasks/.hidden/predict", 422, "bad_task_name"),
        ("/v1/tasks/colors/predict", 404, "unknown_task"),
        ("/v1/tasks//predict", 404, "not_found"),
        ("/v1/tasks/colours/predict/", 404, "not_found"),
        ("/v2/predict", 404, "not_found"),
    ],
)
def test_paths_that_lead_nowhere(server, path, status, code):
    with connected(server) as line:
        line.sendall(head(path, "Content-Length: 3", "Connection: close") + b"red")
        found, body = told(received(line))
    assert (found, body["error"]["code"]) == (status, code)


def test_wrong_methods_name_the_right_ones(client):
    done = client.patch("/v1/tasks/colours")
    refused(done, 405, "method_not_allowed")
    assert set(done.headers["allow"].split(", ")) == {"GET", "PUT", "DELETE"}
    assert client.get(PREDICT).headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DataError("image: truncated"), 400, "bad_image"),
        (TooLargeError("image: 10^9 pixels"), 413, "too_large"),
        (InputError("top_k: no"), 422, "invalid"),
        (BackboneMismatchError("other weights"), 422, "wrong_backbone"),
        (TaskFileError("damaged"), 422, "bad_task_file"),
        (OverloadError("1024 wait", 2.3), 429, "overload"),
        (DeadlineError("too late"), 504, "timeout"),
        (ClosedError("stopping"), 503, "stopping"),
        (UnavailableError("the disk is gone"), 503, "unavailable"),
    ],
)
def test_what_the_engine_says(server, error, status, code):
    server.engine.raises = error
    try:
        done = httpx.post(server.address + PREDICT, files={"image": b"red"})
    finally:
        server.engine.raises = None
    refused(done, status, code, str(error))
    assert done.headers.get("retry-after") == {429: "3", "stopping": "1"}.get(
        code if code == "stopping" else status
    )


def test_a_fault_of_the_server_says_only_where_to_look(server, caplog):
    server.engine.raises = ZeroDivisionError("a secret of the inside")
    try:
        done = httpx.post(
            server.address + PREDICT, files={"image": b"red"}, headers={"X-Request-ID": "find-me"}
        )
    finally:
        server.engine.raises = None
    assert done.status_code == 500
    error = json.loads(done.text)["error"]
    assert (error["code"], error["request_id"]) == ("internal", "find-me")
    assert "secret" not in done.text
    assert "find-me" in caplog.text
    assert "a secret of the inside" in caplog.text


def test_a_server_without_a_token_takes_no_files(client, server):
    before = dict(server.engine.files)
    refused(client.put("/v1/tasks/new", content=b"task"), 403, "forbidden", "token")
    refused(client.delete("/v1/tasks/colours"), 403, "forbidden", "token")
    assert server.engine.files == before
