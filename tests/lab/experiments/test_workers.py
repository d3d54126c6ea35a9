"""Worker processes: a death costs one job, an interruption ends them all, devices are shared out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import torch

from piggyback.lab.experiments.workers import places, side_by_side


def work(job: str) -> str | None:
    if job == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)  # as a terminal does; the parent decides
    if job == "dies":
        os._exit(3)
    if job == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "long":
        time.sleep(600)
    return "bad data" if job == "fails" else None


def test_a_death_costs_one_job():
    jobs = ["interrupted", "fails", "dies", "fine", "killed"]
    assert list(side_by_side(work, jobs, 1)) == [
        ("interrupted", None),
        ("fails", "bad data"),
        ("dies", "its process died (exit code 3); not enough memory, perhaps"),
        ("fine", None),
        ("killed", "its process died (SIGKILL); not enough memory, perhaps"),
    ]
    assert not multiprocessing.active_children()


def test_closing_ends_what_runs():
    ended = side_by_side(work, ["fine", "long", "long"], 2)
    assert next(ended) == ("fine", None)
    assert len(multiprocessing.active_children()) == 1
    began = time.perf_counter()
    ended.close()
    assert not multiprocessing.active_children()
    assert time.perf_counter() - began < 60


def test_devices_in_turn_among_those_that_are_visible(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [place.device for place in places(3)] == ["4", "7", "4"]
    assert [place.threads for place in places(3)] == [2, 2, 2]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [place.device for place in places(2)] == ["0", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert places(16)[15].device is None
    assert places(16)[15].threads == 1
