"""Data sets that a test makes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for data sets."""
    return tmp_path / "sets"
