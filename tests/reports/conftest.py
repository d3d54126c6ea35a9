"""Folders of images that people have."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from support.encoded_pictures import noise


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes small images of noise, each another, so many into every folder, and returns their paths."""
    seeds = itertools.count()

    def write(*folders: str, count: int = 6, suffix: str = ".png") -> list[Path]:
        paths = [tmp_path / f / f"{i:02d}{suffix}" for f in folders for i in range(count)]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(next(seeds)).save(path)
        return paths

    return write
