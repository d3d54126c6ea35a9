"""A cache folder of the test's own, and no data sets but those that a test makes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PIGGYBACK_DATA", raising=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for data sets."""
    return tmp_path / "sets"
