"""HTTP against calls in the process: JPEG files, single images, as many callers on both sides, in turns."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Row
from benchmarks.serving_parts import Part
from benchmarks.serving_setup import (
    Bench,
    bring,
    cpu_seconds,
    engine_of,
    folder,
    inputs,
    jpegs,
    names,
    say,
)
from benchmarks.serving_traffic import chances, closed, percentile

AIM = 0.8
CALLERS = (8, 32)
SHARE = 0.5
"""Of what HTTP answers at most: offered in open-loop runs."""
CONNECTIONS = 128
"""Of the client, in these."""
ROOT = Path(__file__).parents[1]


def measure(bench: Bench) -> Part:
    """Return a row for each number of callers and side, then rows of open-loop traffic over HTTP."""
    count = bench.many()
    source, tasks = folder(bench, count), names(count)
    rows: list[dict[str, Any]] = []
    checks = []
    with engine_of(bench, source) as engine, serving(bench, source) as (pid, port):
        side = engine.task(tasks[0]).image_size or bench.size
        files = jpegs(bench, side)
        bodies = _written(bench, files)
        bring(engine, tasks, inputs(bench, side)[0])
        everyone = [f"/v1/tasks/{task}/predict" for task in tasks]
        job = {"host": "127.0.0.1", "port": port, "bodies": bodies, "settle": bench.settle}
        weights = list(accumulate([1.0] * count))
        warm = {**job, "paths": everyone, "weights": weights, "callers": 8, "rate": None, "seed": 1}
        _client({**warm, "seconds": bench.seconds + count / 30})
        top = 0.0
        for asked in (1, count):
            for callers in CALLERS:
                here, there = [], []
                traffic = {
                    "paths": everyone[:asked],
                    "weights": weights[:asked],
                    "callers": callers,
                    "rate": None,
                    "seconds": bench.seconds,
                }
                for turn in range(bench.repeats):
                    for which in "he" if turn % 2 == 0 else "eh":
                        if which == "e":
                            cpu = cpu_seconds()
                            rate, times = closed(
                                engine.predict, callers, tasks[:asked], files, bench.seconds, turn
                            )
                            here.append(
                                {
                                    "answered": rate,
                                    "p50": percentile(times, 0.5),
                                    "p99": percentile(times, 0.99),
                                    "cpu": 1e3 * (cpu_seconds() - cpu) / max(1, len(times)),
                                }
                            )
                        else:
                            there.append(_over_http({**job, **traffic, "seed": turn}, pid))
                rows += [
                    _row("in process", asked, callers, here),
                    _row("HTTP", asked, callers, there),
                ]
                ratio = median(
                    a["answered"] / b["answered"] for a, b in zip(there, here, strict=True)
                )
                ours, theirs = (median(x["answered"] for x in side) for side in (there, here))
                top = max(top, ours)
                name = f"HTTP / in process, {asked} tasks, {callers} callers"
                checks.append(Row(name, ratio, AIM, ours, theirs, "answers/s", at_least=True))
                say(f"http: {name}: {ratio:.3f}")
        for asked, kind in ((1, "uniform"), (count, "uniform"), (count, "zipf")):
            odds = list(accumulate(chances(kind, asked).tolist()))  # type: ignore[arg-type]
            open_loop = {
                "paths": everyone[:asked],
                "weights": odds,
                "callers": CONNECTIONS,
                "rate": SHARE * top,
                "seconds": 2 * bench.seconds,
                "seed": bench.seed,
            }
            seen = _over_http({**job, **open_loop}, pid)
            rows.append(_row(f"HTTP, Poisson, {kind}", asked, CONNECTIONS, [seen]))
            rows[-1]["offered/s"] = round(SHARE * top, 1)
        about = (
            f"{engine.source}, {side} px, {engine.speed}; JPEG files of {2 * side} px; the client, "
            f"the server and the engine in the process share {os.cpu_count()} cores."
        )
    return Part("http", rows, checks, about)


def _row(side: str, tasks: int, callers: int, seen: list[dict[str, Any]]) -> dict[str, Any]:
    found = {
        key: round(median(one[key] for one in seen), 2)
        for key in ("answered", "p50", "p99", "cpu", "client")
        if key in seen[0] and seen[0][key] is not None
    }
    return {
        "side": side,
        "tasks": tasks,
        "callers": callers,
        "offered/s": "",
        "answered/s": found.get("answered"),
        "p50 ms": found.get("p50"),
        "p99 ms": found.get("p99"),
        "CPU ms/answer": found.get("cpu"),
        "client's CPU ms/answer": found.get("client", ""),
        "refused": sum(one.get("statuses", {}).get("429", 0) for one in seen),
        "errors": sum(
            n
            for one in seen
            for status, n in one.get("statuses", {}).items()
            if status not in ("200", "429")
        ),
    }


def _over_http(job: dict[str, Any], pid: int) -> dict[str, Any]:
    before = cpu_seconds(pid)
    seen = _client(job)
    answers = max(1.0, seen["answered"] * seen["seconds"])
    cpu = 1e3 * (cpu_seconds(pid) - before) / answers
    return {**seen, "cpu": cpu, "client": 1e3 * seen["cpu_seconds"] / answers}


def _client(job: dict[str, Any]) -> dict[str, Any]:
    """What the load generator saw, in its own process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_client"],
        input=json.dumps(job),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=job["seconds"] + 120,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def serving(bench: Bench, source: Path) -> Iterator[tuple[int, int]]:
    """A server in a process of its own, logging as it does by default: its process id and port."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(bench, source, there))
    process.start()
    try:
        if not here.poll(120):
            raise RuntimeError("the server was not ready within 120 s")
        port = re.search(r":(\d+)$", here.recv())
        if port is None or process.pid is None:
            raise RuntimeError("the server gave no port")
        yield process.pid, int(port[1])
    finally:
        process.terminate()
        process.join(60)


def _serve(bench: Bench, source: Path, say_to: Any) -> None:
    from piggyback.serve.http.app import create_app  # only the server's process needs it
    from piggyback.serve.http.server import run

    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    run(create_app(lambda: engine_of(bench, source)), port=0, say=say_to.send)


def _written(bench: Bench, files: list[bytes]) -> list[str]:
    place = bench.work / "jpegs"
    place.mkdir(exist_ok=True)
    for number, data in enumerate(files):
        (place / f"{number}.jpg").write_bytes(data)
    return [str(place / f"{number}.jpg") for number in range(len(files))]
