"""Random HTTP requests: mostly well-formed ones with something odd in each place, some that are not HTTP at all."""

from __future__ import annotations

import base64
import json
import random

from support.colour_tasks import picture

METHODS = [
    "GET",
    "POST",
    "POST",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "get",
    "X" * 99,
]
PATHS = [
    "/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/tasks", "/v1/tasks/", "/v1/predict",
    "/v1/tasks/plain", "/v1/tasks/plain/predict", "/v1/tasks/plain/predict", "/v1/tasks/none/predict", "/v1/predict/",
    "/v1/tasks/..%2fplain/predict", "/v1/tasks/%ff%00/predict", "/v1/tasks/a%0d%0ab", "//v1//tasks", "/page/../app.py",
    "/page/page.js", "/page/%2e%2e/app.py", "/swagger/x", "*", "http://elsewhere/v1/tasks", "/" + "a" * 3000, "/%",
    "/é",
]  # fmt: skip
QUERIES = [
    "", "", "", "?top_k=2", "?top_k=0", "?top_k=1e9", "?top_k=" + "9" * 5000, "?top_k=1&top_k=2", "?task=plain",
    "?task=", "?task=plain&task=none", "?at_least=nan", "?at_least=0.3", "?at_least=-inf", "?replace=classes", "?x=%00",
    "?" + "&" * 500,
]  # fmt: skip
TYPES = [
    "application/json", "application/json; charset=utf-16", "multipart/form-data; boundary=XX", "multipart/form-data",
    "multipart/form-data; boundary=" + "y" * 300, "image/png", "IMAGE/JPG", "image/jpeg;;;", "application/octet-stream",
    "text/plain", "text/plain; charset=latin-1", "", ";", "image/svg+xml", "application/x-www-form-urlencoded", "\xff",
]  # fmt: skip
HEADERS = [
    "X-Request-ID: a", "X-Request-ID: " + "b" * 500, "Authorization: Bearer s3cret", "Authorization: Bearer \xe9",
    "Authorization: Basic eA==", "Expect: 100-continue", "Content-Encoding: gzip", "Origin: null", "Range: bytes=0-1",
    "If-None-Match: *", "If-Modified-Since: yesterday", "Accept: \x7f", "Transfer-Encoding: identity",
    "X: " + "c" * 9000,
    "Upgrade: websocket", "Cookie: a=b", "Content-Type: text/plain", "serve-multiplexed-model-id: ../x",
]  # fmt: skip
VALUES = [
    None, True, 0, -1, 1.5, 10**30, float("nan"), "", "red", "é\ud800", [], {}, [[[[]]]], {"a": {"b": {}}}, ["plain"],
    [None], "data:image/png;base64,", "../x", "\0",
]  # fmt: skip
WORDS = [
    "image",
    "images",
    "text",
    "texts",
    "top_k",
    "tasks",
    "at_least",
    "task",
    "",
    "é",
    "__proto__",
]


def request(rng: random.Random) -> tuple[bytes, bool]:
    """Return one request, and whether the server has to answer it; else whoever sends it closes the connection."""
    if rng.random() < 0.03:
        return rng.randbytes(rng.randrange(1, 400)), False
    kind, body = _body(rng)
    if rng.random() < 0.2:
        kind = rng.choice(TYPES)
    method, path, query = rng.choice(METHODS), rng.choice(PATHS), rng.choice(QUERIES)
    if rng.random() < 0.6:
        method, path = "POST", rng.choice(["/v1/predict", "/v1/tasks/plain/predict"])
    if rng.random() < 0.5:
        query = ""
    lines = [f"{method} {path}{query} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"Content-Type: {kind}"] * (rng.random() < 0.95)
    lines += rng.sample(HEADERS, rng.choice([0, 0, 0, 0, 1, 1, 2, 5]))
    if rng.random() < 0.1:
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    elif rng.random() < 0.95:
        lines.append(
            f"Content-Length: {rng.choice([len(body)] * 30 + [0, 3, -1, 10**30, len(body) + 50])}"
        )
    told = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1", "replace") + body
    if rng.random() < 0.05:  # cut off, or a byte of it is another
        at = rng.randrange(len(told))
        return told[:at] + (b"" if rng.random() < 0.5 else rng.randbytes(1) + told[at + 1 :]), False
    return told, True


def _body(rng: random.Random) -> tuple[str, bytes]:
    """A body, and the content type that suits it."""
    image = rng.choice(
        [picture("red"), picture("lime", "JPEG"), picture("blue", "GIF"), b"", b"none"]
    )
    if image and rng.random() < 0.2:
        at = rng.randrange(len(image))
        image = image[:at] + rng.randbytes(rng.randrange(5)) + image[at + rng.randrange(3) :]
    form = rng.random()
    if form < 0.3:
        return "image/png", image
    if form < 0.6:
        chosen = {
            rng.choice(WORDS): rng.choice(VALUES) for _ in range(rng.choice([0, 0, 0, 1, 2, 3]))
        }
        if rng.random() < 0.7:
            chosen["image"] = base64.b64encode(image).decode()
        text = json.dumps(chosen)
        text = text if rng.random() < 0.9 else text[: len(text) // 2] + "[" * rng.randrange(3000)
        return "application/json", text.encode()
    if form < 0.95:
        parts = b"".join(_part(rng, image) for _ in range(rng.choice([0, 1, 1, 1, 2, 4])))
        return "multipart/form-data; boundary=XX", parts + rng.choice(
            [b"--XX--\r\n", b"--XX--", b""]
        )
    return "image/jpeg", rng.randbytes(rng.randrange(2000))


def _part(rng: random.Random, image: bytes) -> bytes:
    name = rng.choice(["image"] * 40 + WORDS)
    file = rng.choice(
        ['; filename="a.png"'] * 5
        + ["", '; filename="../é\r\n.png"', "; filename*=utf-8''%ff", '; filename=""']
    )
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n'
    kind = rng.choice(
        ["", "Content-Type: image/png\r\n", "Content-Transfer-Encoding: base64\r\n", "X: \r\n"]
    )
    return (head + kind).encode() + b"\r\n" + rng.choice([image, b"2", b"plain"]) + b"\r\n"
