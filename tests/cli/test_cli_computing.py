"""Where commands compute: the cores and the device that are asked for, or that a container leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from piggyback.cli.computing import compute_with, cpu_quota


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads are torch's, the device the environment's: both stay as they were."""
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("group", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("0::/outside/the/container", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("3:cpuset:/\n2:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "250000"}, 3),
        ("2:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "-1"}, None),
        ("3:cpuset:/a", {"cpu/a/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_quotas(tmp_path, group, files, cores):
    for name, text in {"../../../proc/self/cgroup": group, **files}.items():
        file = tmp_path / "sys/fs/cgroup" / name
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        if "cfs" in name:
            (file.parent / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == cores
    assert cpu_quota(tmp_path / "no Linux") is None


def test_a_quota_below_the_cores_is_kept_and_said_once(monkeypatch, capsys):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("piggyback.cli.computing.cpu_quota", lambda: 3)
    compute_with(None)
    assert torch.get_num_threads() == 3
    assert capsys.readouterr().err.count("3 of 8 cores") == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # who sets it has chosen
    torch.set_num_threads(5)
    compute_with(None)
    assert torch.get_num_threads() == 5
    assert not capsys.readouterr().err


COMMANDS = {
    "train": ("--data", "nowhere"),
    "compare": ("--data", "a=nowhere"),
    "evaluate": ("no.safetensors", "--data", "nowhere"),
    "predict": ("no.png", "--task", "no.safetensors"),
    "serve": ("nowhere",),
    "bake": ("no.safetensors", "--to", "no.onnx"),
    "verify": ("no.safetensors",),
    "quickstart": (),
    "experiment": ("run", "nothing"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_cores_and_devices_that_are_not_there(piggyback, command):
    """Said before anything else that is wrong with the command."""
    given = (command, *COMMANDS[command])
    for number in ("0", "-2", "two", "1.5"):
        ran = piggyback(*given, "--threads", number)
        assert (ran.code, "--threads" in ran.err) == (2, True)
    piggyback(*given, "--threads", 10**9).refuses("--threads", str(os.cpu_count()))
    if command != "verify":
        for name in ("gpu", "meta", "cuda:77", "cpu:1"):
            piggyback(*given, "--device", name).refuses(f"--device {name!r}", "(cpu")
    assert not list(Path().iterdir())


def test_a_command_computes_with_what_it_was_given(piggyback, trained, colours, toy):
    torch.set_num_threads(2)
    where = ("--threads", 1, "--device", "cpu")
    ran = piggyback("evaluate", trained, "--data", colours, "--backbone", f"{toy}:build", *where)
    assert (ran.code, torch.get_num_threads()) == (0, 1)
    asks = ("predict", "a.png", "--task", "a", "--url", "http://127.0.0.1:9")
    piggyback(*asks, *where).refuses("--threads", "--url")
    toys = ("experiment", "run", "table2", "--toy", "--workers", 2)
    piggyback(*toys, "--device", "cuda:1").refuses("--device cuda:1", "--workers")
