"""An engine without a network, and a real server around it, for the tests of HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from piggyback.errors import (
    ClosedError,
    DataError,
    DeadlineError,
    OverloadError,
    TaskFileError,
    UnknownTaskError,
    near_misses,
)
from piggyback.schemas import Answer, RankedClass, TaskStatus, Timing
from piggyback.serve.http.app import create_app
from piggyback.serve.http.server import HttpServer, address_of, listen
from piggyback.serve.stats import BATCHES, SECONDS, Stats, Tally

CLASSES = ("red", "green", "blue")


class FakeEngine:
    """Answers by the first byte of an image: ``r``, ``g`` or ``b``; anything else is not an image."""

    source, fingerprint, speed = "timm:none", "ab" * 32, "by heart"
    problem: str | None = None

    def __init__(self, tasks=("colours", "signs"), *, slow=0.0):
        self.options = SimpleNamespace(max_pixels=1000)
        self.files = {name: name.encode() for name in tasks}
        self.slow = slow
        """Seconds that an answer takes."""
        self.asked: list[tuple[str, bytes, int]] = []
        self.cancelled = 0
        self.raises: Exception | None = None
        self.overloaded: bytes | None = None
        """The image for which there is no room."""
        self.closed: list[bool] = []
        self.counts = Counter()

    async def predict_async(self, images, task, top_k, timeout, return_errors):
        self.task(task)
        found = []
        for image in images:
            try:
                found.append(await self._one(image, task, top_k, timeout))
            except DataError as error:
                found.append(error)
        return found

    async def infer_async(self, image, tasks, top_k, timeout):
        names = list(self.files) if tasks is None else tasks
        return [await self._one(image, name, top_k, timeout) for name in names]

    async def _one(self, image, task, top_k, timeout):
        self.asked.append((task, image, top_k))
        if self.raises is not None:
            raise self.raises
        if image == self.overloaded:
            raise OverloadError("too many wait")
        if self.closed:
            raise ClosedError("the engine is stopping")
        letters = [name[0].encode() for name in CLASSES]
        if image[:1] not in letters:
            raise DataError("image: not an image")
        try:
            if self.slow:
                await asyncio.wait_for(asyncio.sleep(self.slow), timeout)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except TimeoutError:
            raise DeadlineError(f"no answer within {timeout} s") from None
        best = letters.index(image[:1])
        names = (CLASSES[best], *[c for c in CLASSES if c != CLASSES[best]])
        self.counts[task, "ok"] += 1
        ranked = zip(names[:top_k], (0.8, 0.1, 0.1), strict=False)
        return Answer(
            task=task, version="0" * 16, ranking=[RankedClass(name=n, probability=p) for n, p in ranked],
            confidence=0.5, tier="dense",
            timing=Timing(prepare=1.0, queue=2.0, load=0.0, run=3.0, total=6.0, batch=1),
        )  # fmt: skip

    def tasks(self):
        return [self.task(name) for name in sorted(self.files)]

    def task(self, name):
        if name not in self.files:
            raise UnknownTaskError(f"unknown task {name!r}{near_misses(name, self.files)}")
        version = hashlib.sha256(self.files[name]).hexdigest()[:16]
        size = len(self.files[name])
        return TaskStatus(
            name=name, version=version, kind="classification", classes=CLASSES, file_bytes=size,
            memory_bytes=7, tier="packed", image_size=8,
        )  # fmt: skip

    def refused(self):
        return {"broken.safetensors": "damaged"}

    def put_task(self, name, data, replace_classes=False):
        if not data.startswith(b"task"):
            raise TaskFileError(f"task {name!r}: not a task file")
        self.files[name] = data
        return self.task(name)

    def delete_task(self, name):
        self.task(name)
        del self.files[name]

    def stats(self):
        tally, batches = Tally(SECONDS), Tally(BATCHES)
        tally.add([0.002, 0.3])
        batches.add([1, 3])
        return Stats(
            requests=dict(self.counts),
            latency={"colours": tally.histogram()},
            batch_sizes=batches.histogram(),
            switches=3,
            hits={"dense": 4, "packed": 2, "disk": 1},
            loads=5,
            load_seconds=0.25,
            load_failures=1,
            evictions={"dense": 2, "packed": 0},
            bytes={"dense": 100, "packed": 50},
            budget=1000,
            tasks={"dense": 1, "packed": 1, "disk": 0},
            queue_depth=0,
            queue_limit=16,
        )

    def close(self, drain=True, timeout=None):
        self.closed.append(drain)


def served(start, *, said=None, ready=True, **options):
    """A server of an application over ``start``, which is an engine, or makes one."""
    app = create_app(start if callable(start) else lambda: start, **options)
    return running(app, said=said, ready=ready)


@contextmanager
def running(app, *, said=None, ready=True) -> Iterator[HttpServer]:
    """A server in a thread, on a free port of this machine."""
    bound = listen("127.0.0.1", 0)
    address = address_of(*bound.getsockname())
    server = HttpServer(app, address, [].append if said is None else said.append)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started and (not ready or app.state.service.status == "ready"))
        server.engine = app.state.service.started
        yield server
    finally:
        server.handle_exit(15, None)
        thread.join(60)
        bound.close()
        assert not thread.is_alive()


def wait_until(true, seconds=60.0):
    """Wait for a condition that other threads bring about."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.005)


@contextmanager
def connected(server) -> Iterator[socket.socket]:
    """A plain connection, for what no client library would send."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def head(path="/v1/tasks/colours/predict", *lines, kind="image/png", method="POST") -> bytes:
    """The first lines of a request."""
    whole = (f"{method} {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *lines, "", "")
    return "\r\n".join(whole).encode()


def received(connection) -> bytes:
    """Everything that comes until the other side closes."""
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def told(response: bytes) -> tuple[int, dict]:
    """Status and JSON of a raw response."""
    first, _, rest = response.partition(b"\r\n")
    return int(first.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])
