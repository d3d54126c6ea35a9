"""``piggyback serve`` as a process: from the first line it says to the last answer it gives."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from piggyback.client import Client
from piggyback.errors import AccessError, ClosedError, ServerError
from piggyback.schemas import Answer
from support.cli_toys import COLOURS

TOKEN = "a-token-of-the-test"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@dataclass
class Running:
    """A server."""

    process: subprocess.Popen[str]
    line: str
    url: str

    def end(self) -> str:
        """Ask it to stop; return its log."""
        self.process.send_signal(signal.SIGTERM)
        more, log = self.process.communicate(timeout=60)
        assert (self.process.returncode, more) == (0, ""), log
        return log


@contextmanager
def started(*options: object) -> Iterator[Running]:
    code = "from piggyback.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", *map(str, options), "--port", "0"]
    environment = {**os.environ, "PIGGYBACK_TOKEN": TOKEN}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=60)[1]
        yield Running(process, line, line.split()[2])
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tasks directory with one task and a file that is none."""
    made = tmp_path_factory.mktemp("served") / "tasks"
    made.mkdir()
    shutil.copy(trained, made / "colours.safetensors")
    (made / "torn.safetensors").write_bytes(trained.read_bytes()[:1000])
    return made


@pytest.fixture(scope="module")
def server(folder: Path, toy: str) -> Iterator[Running]:
    # Held against the command line, which computes in float32: bfloat16 would be the default on some processors.
    options = ("--backbone", f"{toy}:build", "--memory", "64MiB", "--precision", "float32")
    with started(folder, *options) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.url, token=TOKEN) as made:
        yield made


def test_it_says_where_it_is_when_there_are_answers(server, client):
    assert re.match(r"ready at http://127\.0\.0\.1:\d+ \(1 task; .*toy\.py:build; ", server.line)
    assert client.ready()


def test_client_and_url_answer_as_the_command_line_does(
    piggyback, server, client, trained, toy, colours, monkeypatch
):
    monkeypatch.setenv("PIGGYBACK_TOKEN", TOKEN)
    files = [colours / "test" / name / f"{at}.png" for name in COLOURS for at in range(6)]
    line = ("predict", *files, "--json")
    wanted = json.loads(piggyback(*line, "--task", trained, "--backbone", f"{toy}:build").out)
    named = json.loads(piggyback(*line, "--task", "colours", "--url", server.url).out)
    inferred = json.loads(
        piggyback(*line, "--infer-task", "--at-least", 0, "--url", server.url).out
    )
    by_client = client.predict(files, "colours", top_k=3)
    assert len(wanted) == len(named) == len(inferred) == len(by_client) == 18
    for one, *others, answer in zip(wanted, named, inferred, by_client, strict=True):
        names = [held["class"] for held in one["classes"]]
        assert list(answer.classes) == names
        for other in others:
            assert (other["file"], other["task"]) == (one["file"], "colours")
            assert [held["class"] for held in other["classes"]] == names
            for p, held in zip(answer.probabilities, one["classes"], strict=True):
                assert p == pytest.approx(held["probability"], abs=1e-4)
        assert answer.confidence == pytest.approx(one["confidence"], abs=1e-4)
    with Client(server.url) as stranger, pytest.raises(AccessError, match="token"):
        stranger.tasks()


def test_a_stop_leaves_nothing_unanswered(folder, toy, colours):
    data = (colours / "test" / "red" / "0.png").read_bytes()
    answers: list[Answer] = []
    errors: list[Exception] = []
    some = threading.Event()

    def ask(url: str) -> None:
        with Client(url, token=TOKEN) as client:
            while not errors:
                try:
                    answers.extend(client.predict([data] * 4, "colours"))
                    some.set()
                except (ClosedError, ServerError) as error:
                    errors.append(error)

    with started(folder, "--backbone", f"{toy}:build") as running:
        threads = [threading.Thread(target=ask, args=(running.url,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        assert some.wait(60)
        log = running.end()
        for thread in threads:
            thread.join()
    assert {one.classes for one in answers} == {answers[0].classes}
    # Refused, each of them, or nobody there: no request that was taken has been dropped.
    assert [e for e in errors if not isinstance(e, ClosedError) and "reached" not in str(e)] == []
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    statuses = [line["status"] for line in lines if "status" in line]
    assert set(statuses) <= {200, 503}
    assert 4 * statuses.count(200) == len(answers)


def test_a_backbone_that_cannot_be_had_ends_it(folder, piggyback):
    ran = piggyback("serve", folder, "--backbone", "timm:no_such_network", "--port", "0")
    assert ran.code == 1
    assert ran.out == ""
    assert "error: backbone" in ran.err
    assert "no_such_network" in ran.err.splitlines()[-1]


def test_a_port_that_is_taken_is_one_line(piggyback, server, folder, toy):
    port = server.url.rpartition(":")[2]
    ran = piggyback("serve", folder, "--backbone", f"{toy}:build", "--port", port)
    ran.refuses(f"port {port} on 127.0.0.1 cannot be had")  # said before anything is loaded
