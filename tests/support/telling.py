"""Tasks whose right answer tells which task gave it; the load test uses them too."""

from __future__ import annotations

from benchmarks.serving_telling import INPUT, Telling, expected, telling_tasks, write_tasks

__all__ = ["INPUT", "Telling", "expected", "telling_tasks", "write_tasks"]
