"""Empty caches and no network, whatever machine the tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty Hugging Face cache and an empty torch.hub one (``torch`` next to it)."""
    cache = tmp_path / "huggingface"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "torch")
    yield cache
    torch.hub.set_dir(before)


@pytest.fixture
def offline(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network: every request goes to a proxy that is not there. Returns the cache."""
    for scheme in ("http", "https", "all"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.delenv("NO_PROXY", raising=False)
    return hub_cache
