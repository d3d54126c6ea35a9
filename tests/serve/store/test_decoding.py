"""A process decodes task files: what comes back is what the library loads, and its end harms one task at most."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from piggyback import Task, pack_mask
from piggyback.errors import BackboneMismatchError, TaskFileError, UnavailableError
from piggyback.serve.store.decoding import Decoder
from piggyback.taskfile.file import save
from support.telling import INPUT, engine_over, expected, telling_tasks, write_tasks

SHAPES = {"body.weight": (64, 4), "body.bias": (64,)}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    made = Decoder(SHAPES)
    made.ready.result(120)
    yield made
    made.close()


def ended(pid: int) -> bool:
    for _ in range(6000):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_what_comes_back_is_the_same_file_again(decoder):
    task = telling_tasks(3)["t2"]
    odd = {
        "half": torch.randn(3, 2).bfloat16(),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
        "whole": torch.arange(5),
    }
    task = replace(task, norm=odd)
    data = save(task)
    assert save(decoder.load(data, "t2")) == data
    assert decoder.load(data, "other").name == "other"


def test_errors_come_back_as_they_are_and_it_goes_on(decoder):
    data = save(telling_tasks(1)["t0"])
    with pytest.raises(TaskFileError, match="damaged"):
        decoder.load(data[:-5] + b"12345", "t0")
    with pytest.raises(BackboneMismatchError):
        decoder.load(save(Task("t0", {"body.weight": pack_mask(torch.ones(63, 4) > 0)}, {})), "t0")
    assert save(decoder.load(data, "t0")) == data


def test_until_it_is_ready_files_are_decoded_here_and_closing_ends_it():
    data = save(telling_tasks(1)["t0"])
    made = Decoder(SHAPES)
    assert save(made.load(data, "t0")) == data
    pid = made.ready.result(120)
    made.close()
    assert ended(pid)
    with pytest.raises(UnavailableError):
        made.load(data, "t0")


def test_a_process_that_ends_fails_one_task_and_is_started_again(tmp_path, caplog):
    files = write_tasks(tmp_path / "tasks", 4)
    with engine_over(tmp_path / "tasks", decode_apart=True) as engine:
        decoder = engine._decoder
        assert decoder is not None
        first = decoder.ready.result(120)
        assert engine.predict(INPUT, "t0").classes[0] == expected("t0")
        os.kill(first, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="the process that decodes files ended at it"):
            decoder.load(files["t1"], "t1")
        assert "starting another" in caplog.text
        assert engine.predict(INPUT, "t0").classes[0] == expected("t0")
        assert engine.predict(INPUT, "t1").classes[0] == expected("t1")
        second = decoder.ready.result(120)
        assert second != first
        assert engine.predict(INPUT, "t2").classes[0] == expected("t2")
    assert ended(second)


def test_it_ends_when_the_engines_process_is_killed():
    line = (
        "import sys, time; from piggyback.serve.store.decoding import Decoder;"
        "print(Decoder({}).ready.result(120), flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", line], stdout=subprocess.PIPE, text=True
    ) as engine:
        pid = int(engine.stdout.readline())
        engine.kill()
    assert ended(pid)
