"""A server that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from piggyback.schemas import (
    Answer,
    BackboneStatus,
    RankedClass,
    RequestLimits,
    TaskList,
    TaskStatus,
    Timing,
)

STATUS = TaskStatus(
    name="signs", version="0f" * 8, kind="classification", classes=("go", "stop"), file_bytes=900,
    memory_bytes=120, tier="packed", image_size=64,
)  # fmt: skip

LIST = TaskList(
    backbone=BackboneStatus(source="", fingerprint="ab" * 32), speed="float32", tasks=[STATUS], refused={},
    limits=RequestLimits(body_bytes=1 << 24, pixels=25_000_000, images=64, tasks=64),
)  # fmt: skip


def answer(task: str = "signs", *classes: str, confidence: float = 0.5) -> Answer:
    names = classes or ("stop", "go")
    timing = Timing(prepare=1.5, queue=0.25, load=0.0, run=2.0, total=3.75, batch=1)
    ranking = [RankedClass(name=n, probability=0.5**at) for at, n in enumerate(names, 1)]
    return Answer(
        task=task, version="0f" * 8, ranking=ranking, confidence=confidence, tier="dense", timing=timing
    )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True)
class Told:
    """What to answer; ``drop``: close the connection instead."""

    status: int
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    close_after: bool = False
    """Close the connection after the answer without having said so."""


def refusal(status: int, code: str, message: str, **headers: str) -> Told:
    return Told(status, {"error": {"code": code, "message": message}}, headers)


class FakeServer:
    """Runs ``behave`` for every request; ``script`` answers go out first, one each."""

    def __init__(self, behave: Callable[[Asked], Told]) -> None:
        self.behave = behave
        self.script: list[Told] = []
        self.asked: list[Asked] = []
        self.url = ""

    def told(self, asked: Asked) -> Told:
        self.asked.append(asked)
        return self.script.pop(0) if self.script else self.behave(asked)


@contextmanager
def serving(fake: FakeServer, tls: ssl.SSLContext | None = None) -> Iterator[FakeServer]:
    counted = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.number = next(counted)

        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            told = fake.told(Asked(self.command, self.path, headers, body, self.number))
            if told.drop:
                self.close_connection = True
                return
            content = told.content
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name.replace("_", "-"), value)
            if told.status == 204:
                data = b""
            else:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            self.close_connection |= told.close_after

        do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.url = f"http{'s' * (tls is not None)}://127.0.0.1:{server.server_address[1]}"
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def as_a_server(asked: Asked) -> Told:
    """One answer an image, each named after the image's first bytes, as the real server's routes give them."""
    path = asked.path.partition("?")[0]
    if path == "/health":
        return Told(200, {"status": "ready"})
    if path == "/v1/tasks":
        return Told(200, LIST.model_dump(mode="json"))
    if path == "/v1/tasks/signs":
        if asked.method == "DELETE":
            return Told(204)
        return Told(201 if asked.method == "PUT" else 200, STATUS.model_dump(mode="json"))
    bodies = [body[:40] for body in images_of(asked)]
    if path == "/v1/predict":
        found = [
            {
                "task": "signs",
                "inferred": True,
                "answers": [
                    answer("signs", body).model_dump(mode="json"),
                    answer("letters", body).model_dump(mode="json"),
                ],
            }
            for body in bodies
        ]
        return Told(200, {"images": found})
    task = path.split("/")[3]
    return Told(200, {"answers": [answer(task, body).model_dump(mode="json") for body in bodies]})


def images_of(asked: Asked) -> list[str]:
    """The images of a request as text: their bytes."""
    kind = asked.headers["content-type"]
    if not kind.startswith("multipart/form-data; boundary="):
        return [asked.body.decode("latin-1")]
    boundary = b"--" + kind.partition("=")[2].encode()
    first, *parts, last = asked.body.split(boundary)
    assert (first, last) == (b"", b"--\r\n")
    found = []
    for part in parts:
        head, _, data = part.partition(b"\r\n\r\n")
        assert b'form-data; name="image"; filename="' in head
        assert b"Content-Type: image/" in head
        found.append(data.removesuffix(b"\r\n").decode("latin-1"))
    return found
