"""No data sets but those that a test makes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIGGYBACK_DATA", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for data sets."""
    return tmp_path / "sets"
