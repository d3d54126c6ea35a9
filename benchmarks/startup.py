"""What a command takes from nothing to its exit, in units of ``python -c "import torch"`` on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image

from benchmarks.command import main
from benchmarks.measure import Row, Settings, compare
from benchmarks.networks import add_task, network
from piggyback import MultiTaskModel, load_backbone
from piggyback.schemas import Answer, Answers, RankedClass, Timing

HELP, LIGHT, PREDICT = 0.15, 0.3, 2.0
"""Aims: of a help page; of what needs no network; of one image's answer."""


def rows(settings: Settings) -> list[Row]:
    """Return a row for each kind of command. With ``--cpu-time`` it is the commands' own, as elsewhere."""
    if settings.clock is not perf_counter:
        settings = replace(settings, clock=_children)
    with tempfile.TemporaryDirectory() as name, _server() as url:
        folder = Path(name)
        Image.new("RGB", (96, 96), "green").save(folder / "photo.png")
        task, photo = str(folder / "task.safetensors"), str(folder / "photo.png")
        model = MultiTaskModel(
            network("test_resnet", settings)
            if settings.quick
            else load_backbone("efficientnet_lite0", image_size=64)
        )
        add_task(model, "task", 0)
        model.save_task("task", task)
        lines: list[tuple[str, Sequence[str], float]] = [
            ("--help", ("--help",), HELP),
            ("train --help", ("train", "--help"), HELP),
            ("compare --help", ("compare", "--help"), HELP),
            ("serve --help", ("serve", "--help"), HELP),
            ("inspect", ("inspect", task), LIGHT),
            ("predict --url", ("predict", photo, "--url", url, "--task", "task"), LIGHT),
            ("predict", ("predict", photo, "--task", task), PREDICT),
        ]
        return [_row(*line, settings) for line in (lines[::4] if settings.quick else lines)]


def _row(name: str, arguments: Sequence[str], aim: float, settings: Settings) -> Row:
    pair = compare(
        lambda: _run("-m", "piggyback", *arguments),
        lambda: _run("-c", "import torch"),
        settings,
        repeats=3,
    )
    return Row(f"start-up {name}", pair.ratio, aim, pair.ours, pair.theirs, "s")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def _children() -> float:
    """Seconds that the processes started here have run, on any core."""
    times = os.times()
    return times.children_user + times.children_system


@contextmanager
def _server() -> Iterator[str]:
    """The address of a server that gives every image the same answer."""
    timing = Timing(prepare=0, queue=0, load=0, run=0, total=0, batch=1)
    ranking = [RankedClass(name="green", probability=1.0)]
    answer = Answer(
        task="task", version="0" * 16, ranking=ranking, confidence=1, tier="dense", timing=timing
    )
    body = Answers(answers=[answer]).model_dump_json().encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main("startup")
