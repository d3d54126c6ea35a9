"""Tasks whose right answer tells which task gave it; the load test uses them too."""

from __future__ import annotations

from pathlib import Path

from benchmarks.serving_telling import INPUT, Telling, expected, telling_tasks, write_tasks

from piggyback.serve.engine import Engine
from piggyback.serve.options import EngineOptions

__all__ = ["INPUT", "Telling", "engine_over", "expected", "telling_tasks", "write_tasks"]


def engine_over(folder: Path, memory: int | str = "64MiB", **options: object) -> Engine:
    """An engine on the CPU that looks at its folder only when told to."""
    quiet = {"watch_s": 0.0, "device": "cpu"}
    return Engine(Telling(), folder, memory, EngineOptions(**{**quiet, **options}))
