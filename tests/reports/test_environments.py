"""Machines, users and names as they are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from piggyback.errors import InputError
from piggyback.taskfile.disk import user_cache


def test_a_user_without_a_home_is_told_where_caches_may_go(monkeypatch):
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PIGGYBACK_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(InputError, match="PIGGYBACK_CACHE"):
        user_cache()
    monkeypatch.setenv("PIGGYBACK_CACHE", "/somewhere")
    assert user_cache() == Path("/somewhere")
