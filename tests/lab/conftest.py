"""Small networks and images that a training finishes on in a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.training_toys import backbone, data, recipe  # noqa: F401


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PIGGYBACK_DATA", raising=False)
