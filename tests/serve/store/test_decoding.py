"""A process decodes task files: what comes back is what the library loads, and its end harms one task at most."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from piggyback.errors import BackboneMismatchError, TaskFileError, UnavailableError
from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions
from piggyback.serve.store.decoding import Decoder
from piggyback.taskfile.file import save
from support.telling import INPUT, Telling, expected, telling_tasks, write_tasks

SHAPES = {"body.weight": (64, 4), "body.bias": (64,)}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    made = Decoder(SHAPES)
    assert made.wait(120)
    yield made
    made.close()


def ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
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
    other = Decoder({"body.weight": (63, 4)})
    try:
        assert other.wait(120)
        with pytest.raises(BackboneMismatchError):
            other.load(data, "t0")
    finally:
        other.close()
    assert save(decoder.load(data, "t0")) == data


def test_until_it_is_ready_files_are_decoded_here_and_closing_ends_it():
    data = save(telling_tasks(1)["t0"])
    made = Decoder(SHAPES)
    assert save(made.load(data, "t0")) == data
    pid = made.pid
    made.close()
    assert ended(pid)


def test_a_process_that_ends_fails_one_task_and_is_started_again(tmp_path, caplog):
    files = write_tasks(tmp_path / "tasks", 4)
    options = EngineOptions(watch_s=0.0, device="cpu", decode_apart=True)
    with Engine(Telling(), tmp_path / "tasks", "64MiB", options) as engine:
        decoder = engine._decoder
        assert decoder is not None
        assert decoder.wait(120)
        assert engine.predict(INPUT, "t0").classes[0] == expected("t0")
        first = decoder.pid
        os.kill(first, signal.SIGKILL)
        with pytest.raises(UnavailableError, match="the process that decodes files ended at it"):
            decoder.load(files["t1"], "t1")
        assert "starting another" in caplog.text
        assert engine.predict(INPUT, "t0").classes[0] == expected("t0")
        assert engine.predict(INPUT, "t1").classes[0] == expected("t1")
        assert decoder.wait(120)
        assert decoder.pid != first
        assert engine.predict(INPUT, "t2").classes[0] == expected("t2")
    assert ended(decoder.pid)
