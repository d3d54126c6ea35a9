"""Machines, users and names as they are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from piggyback.errors import InputError
from piggyback.taskfile.disk import user_cache
from piggyback.taskfile.file import save_file
from piggyback.taskfile.task import Task, TaskInfo


def test_a_user_without_a_home_is_told_where_caches_may_go(monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PIGGYBACK_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(InputError, match="PIGGYBACK_CACHE"):
        user_cache()
    monkeypatch.setenv("PIGGYBACK_CACHE", "/somewhere")
    assert user_cache() == Path("/somewhere")


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-c", "from piggyback.cli import main; main()", *arguments]
    return subprocess.run(
        line, cwd=folder, env={**os.environ, **variables}, capture_output=True, check=False
    )


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task file whose classes have accents, and codes that colour a terminal."""
    info = TaskInfo(classes=("straße", "red\x1b[31m", "▲"))
    head = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    path = tmp_path / "signs.safetensors"
    save_file(Task("signs", {}, head, info=info), path)
    return path


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_are_shown_on_any_console_and_never_act_on_it(task, encoding):
    ran = run(task.parent, "inspect", task.name, PYTHONIOENCODING=encoding)
    assert ran.returncode == 0, ran.stderr
    assert b"\x1b" not in ran.stdout
    shown = ran.stdout.decode(encoding)
    assert ("straße" if encoding != "ascii" else "stra\\xdfe") in shown
    assert "red\\x1b[31m" in shown


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_file_names_that_are_no_utf_8_end_in_one_line(task, encoding):
    name = os.fsdecode(b"sch\xf6n\x1b[31m.safetensors")
    (task.parent / name).write_bytes(b"x" * 20)
    ran = run(task.parent, "inspect", name, PYTHONIOENCODING=encoding)
    assert ran.returncode == 1
    assert b"Traceback" not in ran.stderr
    assert b"\x1b" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
