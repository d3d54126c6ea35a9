"""Rows of an imaginary comparison."""

from __future__ import annotations

import pytest

from piggyback.lab.tables.rows import Row


@pytest.fixture
def rows() -> list[Row]:
    """Two tasks, three methods, two seeds."""
    made = []
    for task, base in (("signs", 47.0), ("letters", 60.0)):
        for method, gain, bits, size in (
            ("head", 0, None, 250_000),
            ("masks", 40, 0.21, 360_000),
            ("finetune", 41, None, 13_600_000),
        ):
            for seed in (0, 1):
                accuracy = base + gain - 2 * seed
                made.append(Row(task, method, seed, accuracy, accuracy + 1, bits, size, 60.5))
    return made
