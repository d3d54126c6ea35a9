"""A small server that speaks the HTTP interface and says what a test wants: no network, no engine."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import piggyback

PAGE = Path(piggyback.__file__).parent / "serve" / "http" / "page"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; img-src 'self' blob:"


def task(
    name: str, classes: tuple[str, ...] = ("cat", "dog", "owl"), tier: str = "packed"
) -> dict[str, Any]:
    """Return a task's status as the server tells it; sizes and version follow from the name."""
    digits = hashlib.sha256(name.encode()).hexdigest()
    size = 400_000 + int(digits[:4], 16)
    return {
        "name": name,
        "version": digits[:16],
        "kind": "classification",
        "classes": list(classes),
        "file_bytes": size,
        "memory_bytes": 0 if tier == "disk" else size + 5_000,
        "tier": tier,
        "image_size": 224,
    }


def answer(status: dict[str, Any], confidence: float = 0.9) -> dict[str, Any]:
    """Return a task's answer: its first class has 0.75, each next one a fifth of the one before.

    Numbers are 1234.5678 m; of several labels the first is given; of a text the letters 3 to 8 are marked.
    """
    kind = status["kind"]
    more: dict[str, Any] = {}
    if kind == "regression":
        more["values"] = [
            {"name": name, "value": 1234.5678, "unit": "m"} for name in status["classes"]
        ]
    elif kind == "multilabel":
        more["labels"] = status["classes"][:1]
    elif kind == "tokens":
        more["spans"] = [{"start": 3, "end": 8, "text": "", "label": "place", "probability": 0.9}]
    pairs = (
        []
        if kind in ("regression", "tokens")
        else [
            {"class": name, "probability": 0.75 * 0.2**i}
            for i, name in enumerate(status["classes"][:5])
        ]
    )
    return {
        "task": status["name"],
        "version": status["version"],
        "classes": pairs,
        **more,
        "confidence": confidence,
        "tier": status["tier"],
        "timing_ms": {
            "prepare": 3.2,
            "queue": 1.1,
            "load": 0.0,
            "run": 14.6,
            "total": 18.9,
            "batch": 1,
        },
    }


@dataclass
class Service:
    """What the server says, to be changed by a test while it runs, and what it was asked."""

    tasks: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    limits: dict[str, int] = field(
        default_factory=lambda: {"body_bytes": 5_000_000, "pixels": 50_000_000, "tasks": 32}
    )
    token: str | None = None
    health: dict[str, str] = field(default_factory=lambda: {"status": "ready"})
    failure: tuple[int, str] | None = None
    """Status and message that every question gets instead of an answer."""
    sure: bool = True
    """Whether a task is sure, where none is named."""
    asked: list[str] = field(default_factory=list)
    """The paths of all requests, in order."""
    images: list[bytes] = field(default_factory=list)
    """The files that came, byte for byte."""

    def listing(self) -> dict[str, Any]:
        backbone = {"source": "timm/efficientnet_lite0.ra_in1k", "fingerprint": "5c0ffee5c0ffee55"}
        speed = "float32, channels last"
        return {
            "backbone": backbone,
            "speed": speed,
            "tasks": self.tasks,
            "refused": self.refused,
            "limits": self.limits,
        }

    def predict(self, path: str) -> tuple[int, Any]:
        if self.failure:
            return self.failure[0], error("trouble", self.failure[1])
        named = re.fullmatch(r"/v1/tasks/([^/]+)/predict", path)
        if named is None:
            answers = [answer(status, 0.9 / (i + 1)) for i, status in enumerate(self.tasks)]
            return 200, {
                "images": [
                    {
                        "task": answers[0]["task"] if self.sure else None,
                        "inferred": True,
                        "answers": answers,
                    }
                ]
            }
        found = [status for status in self.tasks if status["name"] == unquote(named[1])]
        if not found:
            return 404, error("unknown_task", f"there is no task '{unquote(named[1])}'")
        return 200, {"answers": [answer(found[0])]}


def error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.service.asked.append(path)
        if path.startswith("/v1/"):
            self._guarded(lambda: (200, self.service.listing()))
        elif path == "/health":
            ready = self.service.health["status"] == "ready"
            self._say(200 if ready else 503, self.service.health)
        else:
            self._file(PAGE / ("index.html" if path == "/" else Path(path).name))

    def do_POST(self) -> None:
        self.service.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"] == "application/json":
            self.service.images.append(json.loads(body)["text"].encode())
        else:
            boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
            part = body.split(b"--" + boundary)[1]
            assert b'name="image"' in part.split(b"\r\n\r\n")[0]
            self.service.images.append(part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n"))
        self._guarded(lambda: self.service.predict(urlsplit(self.path).path))

    def _guarded(self, say: Any) -> None:
        wanted = self.service.token
        if wanted is not None and self.headers["Authorization"] != f"Bearer {wanted}":
            self._say(401, error("unauthorized", "this server wants 'Authorization: Bearer TOKEN'"))
        elif self.service.health["status"] != "ready":
            status = self.service.health["status"]
            self._say(503, error(status, f"the server is {status}"))
        else:
            self._say(*say())

    def _say(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _file(self, path: Path) -> None:
        if path.is_file():
            self._send(200, KINDS[path.suffix], path.read_bytes())
        else:
            self._say(404, error("not_found", "no such page"))

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Serve ``service`` on a free port; gives the page's address."""
    handler = type("Handler", (_Handler,), {"service": service})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
