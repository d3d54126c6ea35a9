"""A load generator in a process of its own: kept connections, requests made beforehand, little work per answer.

Reads what to do from standard input and writes what it saw to standard output, both JSON. Without a rate every
connection asks as soon as it is answered; with one, requests are due at random times whatever comes back.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, deque
from typing import Any, cast

Log = list[tuple[int, float, float]]
"""Answers as they came: status, when the request was due, when the answer was there."""


class Connection(asyncio.Protocol):
    """One kept connection with at most one request on its way."""

    def __init__(self, log: Log, idle: Any) -> None:
        self._log, self._idle = log, idle
        self._data = b""
        self._due = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, due: float) -> None:
        """Send a request."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Take what came; an answer that is whole makes the connection idle."""
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        lower = head.lower()
        length = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._data = b""
        self._log.append((int(head[9:12]), self._due, time.perf_counter()))
        self._idle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Count an answer that did not come."""
        self._log.append((0, self._due, time.perf_counter()))

    def close(self) -> None:
        """End it."""
        self._transport.abort()


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Return answers a second, latencies and statuses of the traffic that ``job`` describes."""
    rng = random.Random(job["seed"])
    bodies = []
    for path in job["bodies"]:
        with open(path, "rb") as file:  # noqa: PTH123
            bodies.append(file.read())
    head = (
        "POST {} HTTP/1.1\r\nHost: {}:{}\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
    )
    place = job["host"], job["port"]
    heads = [[head.format(path, *place, len(b)).encode() for b in bodies] for path in job["paths"]]

    def request() -> bytes:
        task = rng.choices(range(len(heads)), cum_weights=job["weights"])[0]
        image = rng.randrange(len(bodies))
        return heads[task][image] + bodies[image]

    log, rate = Log(), job["rate"]
    waiting: deque[float] = deque()
    free: list[Connection] = []
    stop = False

    def idle(connection: Connection) -> None:
        if stop:
            return
        if rate is None:
            connection.ask(request(), time.perf_counter())
        elif waiting:
            connection.ask(request(), waiting.popleft())
        else:
            free.append(connection)

    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: Connection(log, idle), *place))[1]
        for _ in range(job["callers"])
    ]
    start, cpu = time.perf_counter(), time.process_time()
    end = start + job["settle"] + job["seconds"]
    for connection in made:
        idle(connection)
    due, offered = start, 0
    while rate is not None and (due := due + rng.expovariate(rate)) < end:
        rest = due - time.perf_counter()
        if rest > 0:
            await asyncio.sleep(rest)
        offered += 1
        if free:
            free.pop().ask(request(), due)
        else:
            waiting.append(due)
    await asyncio.sleep(max(0.0, end - time.perf_counter()))
    stop, cpu = True, time.process_time() - cpu
    window = start + job["settle"], time.perf_counter()
    for connection in made:
        connection.close()
    inside = [one for one in log if window[0] <= one[2] < window[1]]
    times = sorted(1e3 * (ended - was) for status, was, ended in inside if status == 200)
    took = window[1] - window[0]
    return {
        "answered": len(times) / took,
        "p50": times[len(times) // 2] if times else None,
        "p99": times[int(0.99 * len(times))] if times else None,
        "statuses": dict(Counter(str(status) for status, _, _ in inside)),
        "unsent": len(waiting),
        "cpu_seconds": cpu,
        "seconds": end - start,
    }


if __name__ == "__main__":
    json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
